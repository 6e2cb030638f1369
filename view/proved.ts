/** What the verifier proved of a step of a legal plan, in the step's own names and numbers; `plan.md` has the rules. */

import { onRank } from "../spec/plan/plan.ts";
import type { RuleName } from "../spec/verify/mod.ts";
import { isCollective, type StepFacts, width } from "../spec/plan/facts.ts";
import type { PlanView, ProgramView } from "./plan_view.ts";

/** A rule, and what it says of a step. */
export interface Proved {
  readonly rule: RuleName;
  readonly text: string;
}

/** What rules say of a step; undefined where they say nothing of such steps. Numbers are those of rank 0. */
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
    return `there is room for the most rows that can come: ${room.join(", ")}`;
  },
};

/** The buffers among some that a program fills itself. */
function scratchOf({ facts }: PlanView, names: readonly string[]): string[] {
  return [...new Set(names)]
    .filter((name) => facts.buffers.get(name)!.kind === "scratch");
}

/** What the verifier proved of a step, a rule a line. */
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
