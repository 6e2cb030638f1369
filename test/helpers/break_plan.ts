/** Helpers that break a plan: its steps by name, and small changes. */

import type { Plan, PlanBuffer, Step } from "../../spec/plan/plan.ts";
import type { RuleName } from "../../spec/verify/mod.ts";
import type { Mutable } from "./plans.ts";

export type Draft = Mutable<Plan>;
export type StepOf<Op extends Step["op"]> = Mutable<Extract<Step, { op: Op }>>;

/** Returns step `index` of the only program. Throws if its op is not `op`. */
export function stepAt<Op extends Step["op"]>(
  plan: Draft,
  op: Op,
  index: number,
): StepOf<Op> {
  const step = plan.programs[0]!.steps[index]!;
  if (step.op !== op) throw new Error(`step ${index} is a ${step.op}`);
  return step as StepOf<Op>;
}

// Steps of the layer on ep=2: 0 logits, 1 route, 2 count, 3 permute, 4 exchange counts, 5 exchange, 6 regroup, 7 gate
// and up, 8 down, 9 exchange back, 10 combine.
export const [LOGITS, ROUTE, COUNT, PERMUTE, COUNTS] = [0, 1, 2, 3, 4];
export const [EXCHANGE, REGROUP, HIDDEN, DOWN, BACK, COMBINE] = [
  5,
  6,
  7,
  8,
  9,
  10,
];
export const launch = (plan: Draft, index: number) =>
  stepAt(plan, "launch", index);
export const exchange = (plan: Draft, index: number) =>
  stepAt(plan, "allToAll", index);
export const steps = (plan: Draft) => plan.programs[0]!.steps;
export const swap = (plan: Draft, a: number, b: number) => {
  const list = steps(plan);
  [list[a], list[b]] = [list[b]!, list[a]!];
};
/** Moves a buffer into a separate allocation of `bytes`, so that only the tested rule fails. */
export const moveToOwnAllocation = (
  plan: Draft,
  buffer: Mutable<PlanBuffer>,
  bytes: number,
) => {
  buffer.allocation = plan.allocations.length;
  buffer.offset = 0;
  plan.allocations.push({ bytes });
  plan.peakBytes = Number(plan.peakBytes) + bytes;
};
export const kernelOf = (plan: Draft, index: number) =>
  plan.kernels[launch(plan, index).kernel]!;

/** Broken variant of the valid plan of the layer on ep=2. */
export interface Broken {
  readonly name: string;
  readonly rule: RuleName;
  /** Step that the error must name; null if the error is in no step. */
  readonly step: number | null;
  readonly message: RegExp;
  readonly mutate: (plan: Draft) => void;
  /** Chunks of the valid plan. Default: 1. */
  readonly chunks?: number;
}

export function broken(
  name: string,
  rule: RuleName,
  step: number | null,
  message: RegExp,
  mutate: (plan: Draft) => void,
): Broken {
  return { name, rule, step, message, mutate };
}
