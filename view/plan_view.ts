/** A plan prepared for pictures: the accesses and roles of steps, and the sections of programs. */

import type { Plan } from "../spec/plan/plan.ts";
import type { PlanSummary } from "../spec/plan_summary.ts";
import {
  collectFacts,
  type Facts,
  type ProgramFacts,
} from "../spec/plan/facts.ts";
import { type Role, rolesOf } from "./roles.ts";
import { type Section, sectionsOf } from "./sections.ts";

/** A program with facts about its steps. */
export interface ProgramView extends ProgramFacts {
  readonly sections: readonly Section[];
  /** The role of each step. */
  readonly roles: readonly Role[];
}

/** A plan with derived facts. */
export interface PlanView {
  readonly plan: Plan;
  readonly summary: PlanSummary;
  readonly facts: Facts;
  readonly programs: readonly ProgramView[];
}

/** Prepares a legal plan and its summary. */
export function viewPlan(plan: Plan, summary: PlanSummary): PlanView {
  const facts = collectFacts(plan);
  const programs = facts.programs.map((of) => {
    const sections = sectionsOf(plan, of.program);
    return { ...of, sections, roles: rolesOf(of.program, sections) };
  });
  return { plan, summary, facts, programs };
}

/** Returns the steps of a section's first layer. */
export function stepsOf<T>(
  list: readonly T[],
  { start, length }: Pick<Section, "start" | "length">,
): readonly T[] {
  return list.slice(start, start + length);
}
