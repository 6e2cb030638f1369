/** Mutants of a plan: steps that are dropped, doubled, swapped or moved. */

import fc from "fast-check";
import type { Plan, Step } from "../../spec/plan/plan.ts";

/** A change of one program. Numbers are taken modulo what there is, so that all cases fit all plans. */
export interface Change {
  readonly kind: "drop" | "double" | "swap" | "move";
  readonly program: number;
  /** The step. */
  readonly at: number;
  /** How far from it the other step or the new place is; not for `drop`. */
  readonly by: number;
}

/** A plan and what is changed in it. */
export interface Mutant {
  /** The plan's number. */
  readonly plan: number;
  readonly changes: readonly Change[];
}

/** Most are near: what depends on nothing in between stays legal, and is executed. */
const distance = fc.oneof(
  { arbitrary: fc.integer({ min: -3, max: 3 }), weight: 4 },
  { arbitrary: fc.integer({ min: -12, max: 12 }), weight: 2 },
  { arbitrary: fc.integer({ min: -2000, max: 2000 }), weight: 2 },
);

const change: fc.Arbitrary<Change> = fc.record({
  kind: fc.constantFrom("drop", "double", "swap", "move"),
  // The first program has the most steps.
  program: fc.constantFrom(0, 0, 0, 1, 2),
  at: fc.nat({ max: 5000 }),
  by: distance,
});

/** Mutants of `plans` plans, most with one change. */
export function mutants(plans: number): fc.Arbitrary<Mutant> {
  return fc.record({
    plan: fc.nat({ max: plans - 1 }),
    changes: fc.oneof(
      { arbitrary: fc.tuple(change), weight: 4 },
      { arbitrary: fc.tuple(change, change), weight: 1 },
    ),
  });
}

/** The plan with the changes made, and what they are. It shares all else with the original. */
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

/** Change a list of steps. Returns which: `[12]`, `[12] [17]`. */
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
