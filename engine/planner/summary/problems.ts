/** Finds everything that does not fit a machine, each with the smallest fix. */

import {
  heldAxis,
  modelAxis,
  partBounds,
  partLengths,
} from "../../../spec/axis_parts.ts";
import { UNLIMITED } from "../../../spec/limits.ts";
import {
  type Machine,
  machineRanks,
  placeRanks,
} from "../../../spec/machine.ts";
import { maxOverRanks } from "../../../spec/per_rank.ts";
import { onRank, type Plan, type PlanBuffer } from "../../../spec/plan/plan.ts";
import {
  boundFix,
  limitProblems,
  meshFix,
  type Problem,
} from "../../../spec/problems.ts";
import { deviceLimits } from "../../devices.ts";
import { sizeText } from "../../../spec/size_text.ts";
import type { RankClass } from "../../../spec/plan_summary.ts";

/** Options of the check. */
export interface ProblemOptions {
  readonly machine?: Machine | undefined;
  /** Additional limits to those of the machine. */
  readonly limits?: { readonly [limit: string]: number } | undefined;
  /** Number of buffers that one with this name represents. */
  readonly times: (name: string) => number;
  /** Axes of experts. */
  readonly experts: readonly string[];
  /** Whether a buffer contains weights of experts. */
  readonly isExperts: (buffer: PlanBuffer) => boolean;
  /** Flags that change a bound, by axis. */
  readonly bounds: { readonly [axis: string]: string };
  /** Bits per element of the experts' matrices, if `--dtype` can store them as fp8. */
  readonly encodable?: number | undefined;
}

/** Everything that does not fit. */
export function problemsOf(
  plan: Plan,
  ranks: readonly RankClass[],
  options: ProblemOptions,
): Problem[] {
  const { machine, bounds } = options;
  const limits = limitsOf(machine, options.limits);
  return [
    ...rankProblems(plan, machine),
    ...ranks.flatMap((ranks) => memoryProblem(plan, ranks, options)),
    ...limitProblems(plan, limits, {
      bounds,
      times: options.times,
    }),
  ];
}

/** The limits of the machine's first device, overridden by the given ones. Other resources are unlimited. */
export function limitsOf(
  machine: Machine | undefined,
  given: ProblemOptions["limits"],
): { readonly [limit: string]: number } {
  return machine === undefined
    ? { ...UNLIMITED, ...given }
    : { ...machineLimits(machine), ...given };
}

/** The limits of a machine's first device. */
export function machineLimits(
  machine: Machine,
): { readonly [limit: string]: number } {
  return deviceLimits(machine.devices[placeRanks(machine)[0]!.kind]!) ?? {};
}

function rankProblems(plan: Plan, machine: Machine | undefined): Problem[] {
  if (machine === undefined) return [];
  const available = machineRanks(machine);
  if (plan.ranks <= available) return [];
  const last = plan.mesh.at(-1)!;
  const others = plan.ranks / last.size;
  const fewer = Math.floor(available / others);
  return [{
    kind: "ranks",
    what:
      `the mesh has ${plan.ranks} ranks, and '${machine.name}' has ${available}`,
    fix: fewer >= 1
      ? `--mesh ${
        plan.mesh.map(({ name, size }) =>
          `${name}=${name === last.name ? fewer : size}`
        ).join(",")
      }`
      : "make the mesh smaller",
  }];
}

/** A way to reduce the memory of a rank. */
interface Change extends Pick<Problem, "fix" | "larger"> {
  /** Remaining fraction of the current value: closer to 1 is a smaller change. */
  readonly remains: number;
}

function memoryProblem(
  plan: Plan,
  { bytes, limit, first, count }: RankClass,
  options: ProblemOptions,
): Problem[] {
  if (limit === undefined || bytes.total <= limit) return [];
  const excess = bytes.total - limit;
  const state = { bytes: bytes.state, axes: ["context", "sequence"] };
  const fewer = (excess: number) =>
    boundChange(plan, [{ ...state, axes: ["sequence"] }], excess, options);
  const encoding = encodingChange(plan, first, options);
  const gentle = [
    ...fewer(excess),
    ...cacheChanges(plan, bytes.state, excess, options),
    ...encoding
      ? excess <= encoding.saved ? [encoding] : fewer(excess - encoding.saved)
        .map(({ fix }) => ({ fix: `${encoding.fix} ${fix}` }))
      : [],
  ];
  // A thousandth of the steps' memory, such as counts and alignment, does not depend on tokens either.
  const steps = {
    bytes: 0.999 * (bytes.scratch + bytes.staging - tableBytes(plan)),
    axes: [tokenAxis(plan) ?? ""],
  };
  const changes = [
    ...boundChange(plan, [{ ...state, axes: ["context"] }], excess, options),
    ...boundChange(plan, [steps], excess, options),
    ...boundChange(plan, [steps, state], excess, options)
      .map((change) => ({ ...change, remains: change.remains / 2 })),
    ...expertChanges(plan, first, excess, options),
  ].sort((a, b) => b.remains - a.remains);
  const who = count === 1 ? `rank ${first}` : `each of ${count} ranks`;
  const { fix, larger }: Pick<Problem, "fix" | "larger"> = gentle[0] ??
    changes[0] ??
    { fix: largerDevice(plan, { bytes, first }, options), larger: true };
  return [{
    kind: "memory",
    what: `${who} needs ${sizeText(bytes.total)}, and has ${sizeText(limit)}`,
    fix,
    ...larger ? { larger } : {},
  }];
}

/** Page size of suggestions, in positions. */
const PAGE = 16;

/** A KV cache of half the width, or with fewer pages than all sequences need at full length. */
function cacheChanges(
  plan: Plan,
  state: number,
  excess: number,
  { bounds }: ProblemOptions,
): Change[] {
  const [sequences, context] = ["sequence", "context"].map((axis) =>
    Object.hasOwn(bounds, axis) ? plan.axes[axis]?.size : undefined
  );
  const caches = Object.values(plan.buffers)
    .filter(({ kind }) => kind === "state");
  const dense = caches.every(({ dtype, axes }) =>
    dtype === "f32" &&
    axes.some(({ axis }) => modelAxis(plan, axis) === "context")
  );
  if (!sequences || !context || caches.length === 0 || !dense) return [];
  const remains = (state - excess) / state;
  // A sequence of full length must fit; one page more than the quotient is for rounding.
  const pages = Math.floor(sequences * context * remains / PAGE) - 1;
  const changes = [
    ...remains >= 0.5 ? [{ fix: "--kv-cache-dtype bf16", remains: 0.5 }] : [],
    ...pages * PAGE >= context
      ? [{ fix: `--pages ${pages}x${PAGE}`, remains }]
      : [],
  ];
  return changes;
}

/** Experts' matrices as fp8, slightly more than 8 bits per element. */
function encodingChange(
  plan: Plan,
  rank: number,
  options: ProblemOptions,
): { readonly fix: string; readonly saved: number } | undefined {
  const { encodable } = options;
  if (encodable === undefined) return undefined;
  const held = expertBytes(plan, rank, options);
  return held === 0
    ? undefined
    : { fix: "--dtype fp8", saved: (1 - 8.01 / encodable) * held };
}

/** If nothing else suffices: a device for the data of every rank and one expert per layer. */
function largerDevice(
  plan: Plan,
  { bytes, first }: Pick<RankClass, "bytes" | "first">,
  options: ProblemOptions,
): string {
  const [name] = options.experts;
  const experts = expertBytes(plan, first, options);
  const equal = bytes.total - experts;
  if (name === undefined || experts === 0) {
    return `devices of ${sizeText(bytes.total)}`;
  }
  const axis = heldAxis(plan, name);
  const one = experts / maxHeld(plan, axis);
  return `${meshFix(plan, axis, axis.size)}, on devices of ${
    sizeText(equal + one)
  }: one expert of each layer is ${sizeText(one)}, and every rank holds ${
    sizeText(equal)
  } besides`;
}

/** Maximum number of experts on a rank. */
function maxHeld(plan: Plan, axis: Plan["axes"][string]): number {
  return Math.max(...partLengths(plan, axis) ?? [axis.size]);
}

/** Bytes that grow with the first existing axis of a list. */
interface Growing {
  readonly bytes: number;
  readonly axes: readonly string[];
}

/** Smaller bounds, each by the same factor, that reduce the bytes that grow with them by `excess`. */
function boundChange(
  plan: Plan,
  growing: readonly Growing[],
  excess: number,
  { bounds }: ProblemOptions,
): Change[] {
  const all = growing.reduce((n, { bytes }) => n + bytes, 0);
  const remains = (all - excess) / all;
  const fixes = growing.flatMap(({ axes }) => {
    const axis = axes.find((name) => Object.hasOwn(plan.axes, name));
    const size = axis ? shorter(plan, axis, remains) : 0;
    return size >= 1 ? [boundFix(axis!, size, bounds)] : [];
  });
  return fixes.length === growing.length
    ? [{ fix: fixes.join(" "), remains }]
    : [];
}

/** A shorter axis, such that the longest local part is at most this share of the current one. */
function shorter(plan: Plan, name: string, remains: number): number {
  const axis = heldAxis(plan, name);
  const lengths = partLengths(plan, axis);
  if (lengths && !plan.axes[name]!.dynamic) {
    return Math.floor(Math.max(...lengths) * remains) * lengths.length;
  }
  return Math.floor(fewerTokens(plan, name, remains));
}

/**
 * A length of a dynamic axis for this share of the memory of steps. A rank may have fewer tokens than a step: those of
 * the positions of its sequences. Buffers of received rows grow with all tokens of a step.
 */
function fewerTokens(plan: Plan, name: string, remains: number): number {
  const { size } = plan.axes[name]!;
  const [local, axis] =
    Object.entries(plan.axes).find(([, { of, assignment }]) =>
      of === name && assignment?.by === "items"
    ) ?? [];
  const most = axis ? Math.max(...partBounds(plan, axis)) : size;
  if (most >= size) return size * remains;
  let [all, ofTokens] = [0, 0];
  for (const { kind, bytes, axes } of Object.values(plan.buffers)) {
    if (kind !== "scratch") continue;
    all += maxOverRanks(bytes);
    if (axes.some(({ axis }) => axis === local)) {
      ofTokens += maxOverRanks(bytes);
    }
  }
  const share = ofTokens / all;
  const above = (remains - share) / (1 - share) * size;
  // Buffers share memory, so the shares are estimates: a tenth is left free.
  return 0.9 *
    (above >= most ? above : remains / (share / most + (1 - share) / size));
}

/** The token axis: the dynamic input axis. */
function tokenAxis(plan: Plan): string | undefined {
  const found = Object.values(plan.buffers)
    .filter(({ kind }) => kind === "input")
    .flatMap(({ axes }) => axes)
    .find(({ dynamic }) => dynamic);
  return found && modelAxis(plan, found.axis);
}

/** Tables, whose length does not depend on tokens. */
function tableBytes(plan: Plan): number {
  return Object.values(plan.buffers)
    .filter(({ kind }) => kind === "const" || kind === "rope")
    .reduce((n, { bytes }) => n + maxOverRanks(bytes), 0);
}

/** More ranks for the experts. */
function expertChanges(
  plan: Plan,
  rank: number,
  excess: number,
  options: ProblemOptions,
): Change[] {
  const held = expertBytes(plan, rank, options);
  const remains = (held - excess) / held;
  return options.experts.flatMap((name) => {
    const axis = heldAxis(plan, name);
    const fewer = Math.floor(maxHeld(plan, axis) * remains);
    if (!(fewer >= 1)) return [];
    const parts = Math.ceil(axis.size / fewer);
    const fix = meshFix(plan, axis, parts);
    const ranks = parts * plan.ranks / (partLengths(plan, axis)?.length ?? 1);
    const available = options.machine
      ? machineRanks(options.machine)
      : Infinity;
    // A machine that does not exist is a larger change than any other.
    return ranks > available
      ? [{
        fix:
          `${fix}, on a machine of ${ranks} ranks (this one has ${available})`,
        larger: true,
        remains: 0,
      }]
      : [{ fix, remains: remains / 2 }];
  });
}

/** Bytes of experts on a rank. */
function expertBytes(
  plan: Plan,
  rank: number,
  { times, isExperts }: ProblemOptions,
): number {
  return Object.values(plan.buffers).filter(isExperts)
    .reduce(
      (n, buffer) => n + times(buffer.name) * onRank(buffer.bytes, rank),
      0,
    );
}
