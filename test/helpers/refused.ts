/** Tests that the verifier rejects plans with one error. */

import t from "tap";
import type { Plan } from "../../spec/plan/plan.ts";
import { type RuleName, verifyPlan } from "../../spec/verify/mod.ts";
import type { Draft } from "./break_plan.ts";
import { copyPlan } from "./plans.ts";

/** An invalid change of a plan: its name, the rule that detects it, the rule's message, and the change. */
export type Mistake = readonly [
  name: string,
  rule: RuleName,
  message: RegExp,
  mutate: (draft: Draft) => void,
];

/** Creates a test for each mistake, made in a copy of a legal plan. */
export function testRefused(
  plan: Plan,
  mistakes: readonly Mistake[],
  title: (name: string) => string,
): void {
  for (const [name, rule, message, mutate] of mistakes) {
    t.test(title(name), (t) => {
      const draft = copyPlan(plan);
      mutate(draft);
      const errors = verifyPlan(draft);
      const found = errors.find((error) =>
        error.rule === rule && message.test(error.message)
      );
      const listed = errors.map((e) => `${e.rule}: ${e.message}`);
      t.ok(found, rule, { found: listed });
      if (found) {
        t.match(found.message, /^Cannot [a-z].*: .*[^.]$/s, "message grammar");
      }
      t.end();
    });
  }
}
