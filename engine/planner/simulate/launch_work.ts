/** What a launch does on a rank: what invocations of one workgroup do, times the workgroups. */

import type { Kernel } from "../../../spec/kernel/tree.ts";
import { kernelWork } from "../../../spec/kernel/work.ts";
import { wordsOn } from "../../../spec/per_rank.ts";
import { onRank, type Plan, type PlanBuffer } from "../../../spec/plan/plan.ts";
import type { RoutingRows } from "./routings.ts";
import type { Lengths, Workload } from "./workload.ts";

/** The work of all invocations of a launch. */
export interface LaunchWork {
  readonly workgroups: number;
  readonly multiplyAdds: number;
  readonly operations: number;
  /** Bytes moved between invocations and bindings, by binding. */
  readonly loads: readonly number[];
  readonly stores: readonly number[];
  /** False where a loop is as long as data of which nothing is assumed; its body is then counted once. */
  readonly exact: boolean;
}

/** An integer that stands for all that a buffer holds; undefined: not known. */
export type Typical = (index: number) => number | undefined;

/** Where a launch is counted. */
export interface LaunchPlace {
  readonly workgroups: readonly [number, number, number];
  /** What bindings hold, and a key that is equal for equal contents. */
  readonly typical: readonly (Typical | undefined)[];
  readonly key: string;
  /** Workgroups along x that stand for all: more than one where they have different work. Default: the middle one. */
  readonly groups?: number;
}

/** Invocations of a workgroup that stand for all: what a lane does may depend on its number. More, where it does. */
const LANES = 4, MORE_LANES = 16;

/** Workgroups along y that stand for all where they do different things. */
const MERGED = 8;

/** Counts the work of launches; equal launches are counted once. */
export class LaunchCounter {
  readonly #counted = new Map<Kernel, Map<string, LaunchWork>>();

  /** Count a launch of `kernel`. */
  count(kernel: Kernel, place: LaunchPlace): LaunchWork {
    const counted = this.#counted.get(kernel) ?? new Map<string, LaunchWork>();
    this.#counted.set(kernel, counted);
    const key = `${place.workgroups} ${place.key}`;
    const work = counted.get(key) ?? countLaunch(kernel, place);
    counted.set(key, work);
    return work;
  }
}

function countLaunch(
  kernel: Kernel,
  { workgroups: [x, y, z], typical, groups = 1 }: LaunchPlace,
): LaunchWork {
  const { workgroupSize, bindings } = kernel;
  const data = new Map(bindings.map(({ name }, i) => [name, typical[i]]));
  const looked = Math.max(1, Math.min(groups, x));
  const across = Math.min(isMerged(kernel) ? MERGED : 1, y);
  const load = (binding: string, index: number) => data.get(binding)?.(index);
  const worksOf = (max: number) => {
    const lanes = Math.min(max, workgroupSize);
    return Array.from({ length: looked * across * lanes }, (_, n) => {
      const lane = n % lanes;
      const place = Math.floor(n / lanes);
      const group = [
        Math.floor((place % looked + 0.5) * x / looked),
        Math.floor((Math.floor(place / looked) + 0.5) * y / across),
        z >> 1,
      ] as const;
      const at = lanes === 1
        ? 0
        : Math.round(lane * (workgroupSize - 1) / (lanes - 1));
      return kernelWork(kernel, { group, lane: at, load });
    });
  };
  const few = worksOf(LANES);
  const differ = few.some(({ multiplyAdds }, n) =>
    multiplyAdds !== few[n - n % LANES]!.multiplyAdds
  );
  const works = differ ? worksOf(MORE_LANES) : few;
  const scale = x * y * z * workgroupSize / works.length;
  const total = (of: (work: (typeof works)[number]) => number) =>
    scale * works.reduce((n, work) => n + of(work), 0);
  return {
    workgroups: x * y * z,
    multiplyAdds: total(({ multiplyAdds }) => multiplyAdds),
    operations: total(({ operations }) => operations),
    loads: bindings.map((_, i) => total(({ loads }) => loads[i]!)),
    stores: bindings.map((_, i) => total(({ stores }) => stores[i]!)),
    exact: works.every(({ exact }) => exact),
  };
}

/** Whether workgroups along y do different things, as in launches that were merged. */
function isMerged({ body: [first] }: Kernel): boolean {
  return first?.op === "if" && first.condition.op === "binary" &&
    first.condition.a.op === "id" && first.condition.a.name === "group.y";
}

/** What is known of a step besides the plan. */
export interface TypicalOptions {
  readonly workload: Workload;
  readonly lengths: Lengths;
  readonly rank: number;
  /** The routing that a buffer belongs to. */
  readonly rows: RoutingRows | undefined;
  /** Rows of a tile of a grouped matmul. */
  readonly tileRows: number;
  /** The plan's inputs. */
  readonly inputs: readonly PlanBuffer[];
}

/** The integers that kernels find in a buffer, and a key of them. */
export function typicalOf(
  plan: Plan,
  buffer: PlanBuffer,
  options: TypicalOptions,
): { readonly at: Typical; readonly key: string } | undefined {
  const { kind, data, assignment, axes, name } = buffer;
  const { workload, lengths, rank, rows, tileRows } = options;
  if (kind === "counts") {
    const values = plan.counts.map((axis) => lengths.max(axis));
    // Inputs may be stored behind them.
    const inputs = options.inputs
      .filter(({ allocation }) => allocation === buffer.allocation)
      .map((other) => ({
        end: (other.offset - buffer.offset + onRank(other.bytes, rank)) / 4,
        typical: typicalOf(plan, other, options),
      }));
    return {
      at: (i) => values[i] ?? inputs.find(({ end }) => i < end)?.typical?.at(i),
      key: `${values} ${inputs.map(({ typical }) => typical?.key)}`,
    };
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
    // The middle of the new tokens: attention to those before grows evenly.
    return constant(
      name === "position"
        ? past + Math.floor(Math.max(1, tokens / sequences) / 2)
        : 0,
    );
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
    // Behind those of experts, columns of tokens that are sent once.
    const each = [
      Math.round(tokens * topK / experts),
      Math.round(tokens * destinations / (columns - experts)),
    ] as const;
    return {
      at: (i) => each[i % columns < experts ? 0 : 1],
      key: `${each} ${columns}`,
    };
  }
  return constant(0);
}

function constant(value: number): { at: Typical; key: string } {
  return { at: () => value, key: `${value}` };
}
