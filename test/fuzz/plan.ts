/** Class `plan`: a plan with dropped, duplicated, swapped or moved steps is rejected, or computes the same bytes. */

import { stringifyPlan } from "../../spec/document/json.ts";
import { verifyPlan } from "../../spec/verify/mod.ts";
import { type Checkpoint, demoCheckpoint } from "./checkpoint.ts";
import { DemoPlans, type PlanSource, SOURCES } from "./demo_plans.ts";
import { Finding, type FuzzClass } from "./fuzz.ts";
import type { Results } from "./runs.ts";
import { type Mutant, mutants, mutate } from "./mutants.ts";

export interface PlanClassOptions {
  /** Plans to mutate. Default: those of the bundled checkpoint on all meshes. */
  readonly sources?: readonly PlanSource[];
  /** Reads the checkpoint. Default: the bundled checkpoint. */
  readonly read?: () => Promise<Checkpoint>;
}

/** Mutants of plans. */
export function planClass(
  { sources = SOURCES, read = demoCheckpoint }: PlanClassOptions = {},
): FuzzClass<Mutant> {
  const plans = new DemoPlans(read);
  const wanted = new Map<PlanSource, Results>();
  const changed = async (mutant: Mutant) => {
    const source = sources[mutant.plan % sources.length]!;
    const subject = await plans.open(source);
    return { source, subject, ...mutate(subject.plan, mutant.changes) };
  };
  return {
    name: "plan",
    count: 1000,
    cases: mutants(sources.length),
    async judge(mutant) {
      const { source, subject, plan, text } = await changed(mutant);
      const [first] = verifyPlan(plan, { fitsSchema: true });
      if (first) {
        if (/^Cannot [a-z].*: .*[^.]$/s.test(first.message)) {
          return `refused by ${first.rule}`;
        }
        throw new Finding(
          `The plan of ${source.name}, ${text}, is refused without a reason: ${first.message}`,
        );
      }
      const original = wanted.get(source) ?? await subject.run(subject.plan);
      wanted.set(source, original);
      const found = await subject.run(plan);
      const other = [...original].find(([name, hex]) =>
        found.get(name) !== hex
      );
      if (other === undefined) return "legal and the same bytes";
      throw new Finding(
        `The plan of ${source.name}, ${text}, is legal but changes ${other[0]}`,
      );
    },
    async evidence(mutant) {
      return { "plan.json": stringifyPlan((await changed(mutant)).plan) };
    },
    close: () => plans.close(),
  };
}
