/**
 * The verifier's results for a step of a legal plan, with the step's own names and numbers. See `plan.md` for the
 * rules.
 */

import { onRank } from "../spec/plan/plan.ts";
import type { RuleName } from "../spec/verify/mod.ts";
import { type StepFacts, width } from "../spec/plan/facts.ts";
import { isCollective } from "../spec/plan/members.ts";
import type { PlanView, ProgramView } from "./plan_view.ts";

/** A rule, and its result for a step. */
export interface Proved {
  readonly rule: RuleName;
  readonly text: string;
}

/** The result of each rule for a step. Undefined if the rule does not apply. Numbers are those of rank 0. */
const RULES: {
  readonly [R in RuleName]?: (
    view: PlanView,
    program: ProgramView,
    at: StepFacts,
  ) => string | undefined;
} = {
  reads: (view, { steps }, { reads }) => {
    const written = scratchOf(view, reads).map((name) => {
      const by = steps.filter(({ writes }) => writes.includes(name));
      return `${name} by ${by.map(({ index }) => index).join(", ")}`;
    });
    return written.length === 0
      ? undefined
      : `what it reads was written before, by all steps that write it: ${
        written.join("; ")
      }`;
  },
  overlap: (view, _, { writes }) => {
    const names = scratchOf(view, writes);
    return names.length === 0
      ? undefined
      : `nothing else that is still needed is in the memory of ${
        names.join(", ")
      }`;
  },
  bindings: (_, __, { step }) =>
    step.op === "launch"
      ? `each of the ${
        Object.keys(step.bindings).length
      } bindings of its kernel has a buffer of its dtype, long enough for constant indices`
      : undefined,
  groups: ({ facts }, _, { step }) =>
    isCollective(step)
      ? `all ${width(facts, step.over)} ranks of each group take part in it`
      : undefined,
  capacity: ({ facts }, _, { step }) => {
    if (step.op !== "allToAll" || step.part?.part !== "exchange") {
      return undefined;
    }
    const room = [step.from, step.to].map((name) =>
      `${name} ${
        Math.floor(onRank(facts.buffers.get(name)!.bytes, 0) / step.rowBytes)
      }`
    );
    return `there is room for the maximum number of rows: ${room.join(", ")}`;
  },
};

/** Returns the buffers that a program fills itself. */
function scratchOf({ facts }: PlanView, names: readonly string[]): string[] {
  return [...new Set(names)]
    .filter((name) => facts.buffers.get(name)!.kind === "scratch");
}

/** Returns the verifier's results for a step, one rule per line. */
export function provedOf(
  view: PlanView,
  program: ProgramView,
  at: StepFacts,
): Proved[] {
  return (Object.keys(RULES) as RuleName[]).flatMap((rule) => {
    const text = RULES[rule]!(view, program, at);
    return text === undefined ? [] : [{ rule, text }];
  });
}
