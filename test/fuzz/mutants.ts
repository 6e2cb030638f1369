/** Mutants of a plan: dropped, duplicated, swapped or moved steps. */

import fc from "fast-check";
import type { Plan, Step } from "../../spec/plan/plan.ts";

/** A change of one program. Numbers are taken modulo the number of choices, so all cases apply to all plans. */
export interface Change {
  readonly kind: "drop" | "double" | "swap" | "move";
  readonly program: number;
  /** Index of the step. */
  readonly at: number;
  /** Distance to the other step or the new index. Ignored by `drop`. */
  readonly by: number;
}

/** A plan and its changes. */
export interface Mutant {
  /** Index of the plan. */
  readonly plan: number;
  readonly changes: readonly Change[];
}

/** Mostly short distances: changes among independent steps stay legal and are executed. */
const distance = fc.oneof(
  { arbitrary: fc.integer({ min: -3, max: 3 }), weight: 4 },
  { arbitrary: fc.integer({ min: -12, max: 12 }), weight: 2 },
  { arbitrary: fc.integer({ min: -2000, max: 2000 }), weight: 2 },
);

const change: fc.Arbitrary<Change> = fc.record({
  kind: fc.constantFrom("drop", "double", "swap", "move"),
  // The first program has most steps.
  program: fc.constantFrom(0, 0, 0, 1, 2),
  at: fc.nat({ max: 5000 }),
  by: distance,
});

/** Mutants of `plans` plans, mostly with one change. */
export function mutants(plans: number): fc.Arbitrary<Mutant> {
  return fc.record({
    plan: fc.nat({ max: plans - 1 }),
    changes: fc.oneof(
      { arbitrary: fc.tuple(change), weight: 4 },
      { arbitrary: fc.tuple(change, change), weight: 1 },
    ),
  });
}

/** Applies changes and describes them. The result shares unchanged parts with the original. */
export function mutate(
  plan: Plan,
  changes: readonly Change[],
): { readonly plan: Plan; readonly text: string } {
  const programs = plan.programs.map((program) => ({
    ...program,
    steps: [...program.steps],
  }));
  const texts = changes.map(({ kind, program, at, by }) => {
    const { name, steps } = programs[program % programs.length]!;
    return `${kind} ${name}${apply(steps, kind, { at, by })}`;
  });
  return { plan: { ...plan, programs }, text: texts.join(", then ") };
}

/** Changes a list of steps. Returns their indices: `[12]`, `[12] [17]`. */
function apply(
  steps: Step[],
  kind: Change["kind"],
  { at, by }: Pick<Change, "at" | "by">,
): string {
  const { length } = steps;
  if (length === 0) return "[]";
  const from = at % length;
  const to = (((from + by) % length) + length) % length;
  switch (kind) {
    case "drop":
      steps.splice(from, 1);
      return `[${from}]`;
    case "double":
      steps.splice(to, 0, steps[from]!);
      break;
    case "swap":
      [steps[from], steps[to]] = [steps[to]!, steps[from]!];
      break;
    case "move":
      steps.splice(to, 0, ...steps.splice(from, 1));
  }
  return `[${from}] [${to}]`;
}
