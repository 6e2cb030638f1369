/** A plan as pictures need it: what each step reads and writes, the sections of programs, and what each step is for. */

import type { Plan } from "../spec/plan/plan.ts";
import type { PlanSummary } from "../spec/plan_summary.ts";
import {
  collectFacts,
  type Facts,
  type ProgramFacts,
} from "../spec/plan/facts.ts";
import { type Role, rolesOf } from "./roles.ts";
import { type Section, sectionsOf } from "./sections.ts";

/** A program with what is known of its steps. */
export interface ProgramView extends ProgramFacts {
  readonly sections: readonly Section[];
  /** What each step is for. */
  readonly roles: readonly Role[];
}

/** A plan with what is known of it. */
export interface PlanView {
  readonly plan: Plan;
  readonly summary: PlanSummary;
  readonly facts: Facts;
  readonly programs: readonly ProgramView[];
}

/** Look at a plan and its summary. For legal plans only. */
export function viewPlan(plan: Plan, summary: PlanSummary): PlanView {
  const facts = collectFacts(plan);
  const programs = facts.programs.map((of) => {
    const sections = sectionsOf(plan, of.program);
    return { ...of, sections, roles: rolesOf(of.program, sections) };
  });
  return { plan, summary, facts, programs };
}

/** The steps of the first of a section's layers. */
export function stepsOf<T>(
  list: readonly T[],
  { start, length }: Pick<Section, "start" | "length">,
): readonly T[] {
  return list.slice(start, start + length);
}
