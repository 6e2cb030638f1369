/** Counts the work of a launch on a rank: the work of some invocations of one workgroup, times the workgroups. */

import { cachedWith } from "../../../spec/bounded_cache.ts";
import { GRID_LIMIT } from "../../../spec/kernel/make.ts";
import type { Kernel } from "../../../spec/kernel/tree.ts";
import { type KernelWork, kernelWork } from "../../../spec/kernel/work.ts";
import { range } from "../../../spec/range.ts";
import { wordsOn } from "../../../spec/per_rank.ts";
import { onRank, type Plan, type PlanBuffer } from "../../../spec/plan/plan.ts";
import type { RoutingRows } from "./routings.ts";
import type { Lengths, Workload } from "./workload.ts";

/** Work of all invocations of a launch. */
export interface LaunchWork {
  readonly workgroups: number;
  /** Invocations of a workgroup. */
  readonly lanes: number;
  readonly multiplyAdds: number;
  readonly operations: number;
  /** Bytes moved between invocations and bindings, by binding. */
  readonly loads: readonly number[];
  readonly stores: readonly number[];
  /** False if the length of a loop depends on unknown data; its body is then counted once. */
  readonly exact: boolean;
  /** Whether matrix units of devices that have them multiply 16-bit operands. */
  readonly matrices: boolean;
}

/** Representative integers for the contents of a buffer. */
export interface Typical {
  /** Undefined: unknown. */
  (index: number): number | undefined;
  /** The integer, if all are equal. */
  readonly constant?: number;
}

/** Context of counting a launch. */
export interface LaunchSetup {
  readonly workgroups: readonly [number, number, number];
  /** Contents of bindings. */
  readonly typical: readonly (Typical | undefined)[];
  /** Number of sampled workgroups along x: more than one if their work differs. Default: the middle one. */
  readonly groups?: number;
}

/**
 * Number of sampled invocations per workgroup: the work of a lane may depend on its number. The larger number is used
 * if it does.
 */
const LANES = 4, MORE_LANES = 16;

/** Number of sampled workgroups along y if they do different work. */
const MERGED = 8;

/** Maximum numbers of workgroups whose work is compared: along z, and along x and y if they count the same items. */
const DEPTHS = 256, FOLDED = 16;

/** Work of a launch, and the known data that counting read: launches with equal data have equal work. */
interface KnownWork {
  readonly reads: readonly (readonly [
    binding: number,
    index: number,
    value: number | undefined,
  ])[];
  readonly work: LaunchWork;
}

/** Counted launches by kernel, of all plans: a search compiles equal kernels for many meshes. */
const countedByBody = new WeakMap<Kernel["body"], Map<string, KnownWork[]>>();

/** Maximum number of counted launches of a kernel with equal workgroups. */
const MAX_LAUNCHES = 16;

/** Counts the work of a launch of `kernel`. Equal launches are counted once. */
export function launchWork(kernel: Kernel, setup: LaunchSetup): LaunchWork {
  const { workgroups, groups, typical } = setup;
  const names = kernel.bindings.map(({ name }) => name);
  const known = typical.map((at) =>
    at ? at.constant === undefined ? "read" : "constant" : ""
  );
  const key = [kernel.workgroupSize, ...workgroups, groups, ...known, ...names]
    .join();
  const counted = cachedWith(countedByBody, kernel.body, {
    key,
    create: (): KnownWork[] => [],
  });
  const equal = counted.find(({ reads }) =>
    reads.every(([binding, i, value]) => typical[binding]!(i) === value)
  );
  if (equal) return equal.work;
  const reads = new Map<string, KnownWork["reads"][number]>();
  const work = countLaunch(kernel, {
    ...setup,
    typical: typical.map((at, binding) => {
      const read = (i: number) => {
        const value = at!(i);
        reads.set(`${binding} ${i}`, [binding, i, value]);
        return value;
      };
      if (at?.constant === undefined) return at && read;
      // One integer determines the data of a constant binding.
      read(0);
      return at;
    }),
  });
  if (counted.length === MAX_LAUNCHES) counted.shift();
  counted.push({ reads: [...reads.values()], work });
  return work;
}

/** Reads representative integers of a kernel's bindings. Undefined: unknown. */
export function typicalLoad(
  { bindings }: Kernel,
  { typical }: Pick<LaunchSetup, "typical">,
): (binding: string, index: number) => number | undefined {
  const data = new Map(bindings.map(({ name }, i) => [name, typical[i]]));
  return (binding, index) => data.get(binding)?.(index);
}

/** A workgroup that represents others. */
export interface SampledGroup {
  readonly group: readonly [number, number, number];
  /** Share of the workgroups of the launch. */
  readonly share: number;
}

/**
 * Workgroups of a launch that represent all: evenly distributed over x, and over y if work differs along y; along z,
 * one for each amount of work, because attention has blocks of keys outside its window. Also one for each amount of
 * work if x and y count the same items, because the last of these workgroups have none.
 */
export function sampledGroups(
  kernel: Kernel,
  setup: LaunchSetup,
): SampledGroup[] {
  const { workgroups: [x, y, z], groups = 1 } = setup;
  const load = typicalLoad(kernel, setup);
  const evenly = (count: number, of: number) =>
    range(count).map((n) => Math.floor((n + 0.5) * of / count));
  const isFolded = x === GRID_LIMIT && y > 1 && z === 1;
  const looked = Math.max(1, Math.min(groups, x));
  const across = Math.min(isMerged(kernel) ? MERGED : 1, y);
  const candidates = isFolded
    ? [evenly(FOLDED, x * y).map((n) => [n % x, Math.floor(n / x), 0] as const)]
    : evenly(across, y).flatMap((atY) =>
      evenly(looked, x).map((atX) =>
        evenly(Math.min(z, DEPTHS), z).map((atZ) => [atX, atY, atZ] as const)
      )
    );
  return candidates.flatMap((all) => {
    const equal = new Map<string, SampledGroup["group"][]>();
    for (const group of all) {
      const key = all.length === 1 ? "" : JSON.stringify(
        kernelWork(kernel, { group, lane: 0, load }),
      );
      equal.set(key, [...equal.get(key) ?? [], group]);
    }
    return [...equal.values()].map((some): SampledGroup => ({
      group: some[some.length >> 1]!,
      share: some.length / all.length / candidates.length,
    }));
  });
}

function countLaunch(kernel: Kernel, setup: LaunchSetup): LaunchWork {
  const { workgroupSize, bindings } = kernel;
  const { workgroups: [x, y, z] } = setup;
  const load = typicalLoad(kernel, setup);
  const groups = sampledGroups(kernel, setup);
  const worksOf = (max: number) => {
    const lanes = Math.min(max, workgroupSize);
    return groups.flatMap(({ group, share }) =>
      Array.from({ length: lanes }, (_, lane) => {
        const at = lanes === 1
          ? 0
          : Math.round(lane * (workgroupSize - 1) / (lanes - 1));
        return {
          work: kernelWork(kernel, { group, lane: at, load }),
          share: share / lanes,
        };
      })
    );
  };
  const few = worksOf(LANES);
  const differ = few.some(({ work }, n) =>
    work.multiplyAdds !== few[n - n % LANES]!.work.multiplyAdds
  );
  const works = differ ? worksOf(MORE_LANES) : few;
  const scale = x * y * z * workgroupSize;
  const total = (of: (work: KernelWork) => number) =>
    scale * works.reduce((n, { work, share }) => n + share * of(work), 0);
  return {
    workgroups: x * y * z,
    lanes: kernel.workgroupSize,
    multiplyAdds: total(({ multiplyAdds }) => multiplyAdds),
    operations: total(({ operations }) => operations),
    loads: bindings.map((_, i) => total(({ loads }) => loads[i]!)),
    stores: bindings.map((_, i) => total(({ stores }) => stores[i]!)),
    exact: works.every(({ work }) => work.exact),
    matrices: kernel.matrixForm !== undefined,
  };
}

/** Whether workgroups along y do different work, as in merged launches. */
function isMerged({ body: [first] }: Kernel): boolean {
  return first?.op === "if" && first.condition.op === "binary" &&
    first.condition.a.op === "id" && first.condition.a.name === "group.y";
}

/** Facts about a step besides the plan. */
export interface TypicalOptions {
  readonly workload: Workload;
  readonly lengths: Lengths;
  readonly rank: number;
  /** The routing of a buffer. */
  readonly rows: RoutingRows | undefined;
  /** Rows per tile of a grouped matmul. */
  readonly tileRows: number;
  /** Inputs of the plan. */
  readonly inputs: readonly PlanBuffer[];
}

/** The integers in a buffer for kernels, and their key. */
export function typicalOf(
  plan: Plan,
  buffer: PlanBuffer,
  options: TypicalOptions,
): { readonly at: Typical; readonly key: string } | undefined {
  const { kind, data, assignment, axes, name } = buffer;
  const { workload, lengths, rank, rows, tileRows } = options;
  if (kind === "counts") {
    const values = plan.counts.map((axis) => lengths.max(axis));
    // Inputs may be stored after them.
    const inputs = options.inputs
      .filter(({ allocation }) => allocation === buffer.allocation)
      .map((other) => {
        const start = (other.offset - buffer.offset) / 4;
        return {
          start,
          end: start + onRank(other.bytes, rank) / 4,
          typical: typicalOf(plan, other, options),
        };
      });
    const inputAt = (i: number) => {
      const input = inputs.find(({ start, end }) => start <= i && i < end);
      return input?.typical?.at(i - input.start);
    };
    return {
      at: (i) => values[i] ?? inputAt(i),
      key: `${values} ${inputs.map(({ typical }) => typical?.key)}`,
    };
  }
  if (kind === "weight" && buffer.dtype === "u32") {
    return constant(WEIGHT_WORD);
  }
  if (kind === "const" && data) {
    const words = wordsOn(data, { mesh: plan.mesh, rank });
    return { at: (i) => words[i], key: `${rank}` };
  }
  if (assignment) {
    return assignment.holds === "counts"
      ? constant(lengths.max(assignment.axis))
      : { at: (i) => i, key: "i" };
  }
  if (kind === "input" && buffer.dtype === "i32") {
    const { tokens, sequences = 1, past = 0 } = workload;
    const each = Math.max(1, tokens / sequences);
    // Consecutive tokens belong to one sequence, as `eachTokenRun` expects.
    if (name === "sequence") {
      return { at: (i) => Math.floor(i / each), key: `${each}` };
    }
    // The middle of the new tokens: the cost of attention to earlier ones grows linearly.
    return constant(name === "position" ? past + Math.floor(each / 2) : 0);
  }
  if (buffer.dtype !== "u32" || rows === undefined) return undefined;
  if (buffer.routing === "tiles") {
    const full = Math.max(1, Math.min(tileRows, rows.max / rows.localExperts));
    // A number of tiles, then for each its expert, its first row and its rows.
    return {
      at: (i) => i === 0 ? 2 ** 31 : i % 3 === 0 ? Math.round(full) : 0,
      key: `${Math.round(full)}`,
    };
  }
  if (buffer.routing === "counts") {
    const columns = onRank(axes.at(-1)!.size, rank);
    const { experts, tokens, topK, destinations } = rows;
    // After the experts, counts of deduplicated tokens.
    const each = [
      Math.round(tokens * topK / experts),
      Math.round(tokens * destinations / (columns - experts)),
    ] as const;
    return {
      at: (i) => each[i % columns < experts ? 0 : 1],
      key: `${each} ${columns}`,
    };
  }
  // The number of rows, then that of tokens.
  const counts = buffer.routing === "rows" && onRank(buffer.bytes, rank) <= 8;
  return constant(counts ? Math.round(rows.max) : 0);
}

/** A word of packed weights. As in almost all words of published ones, no FP8 element in it is subnormal. */
const WEIGHT_WORD = 0x40404040;

function constant(value: number): { at: Typical; key: string } {
  return {
    at: Object.assign(() => value, { constant: value }),
    key: `${value}`,
  };
}
