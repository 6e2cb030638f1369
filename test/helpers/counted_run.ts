/** Runs of a case that check bytes against the plan's predictions. */

import type { Test } from "tap";
import type { CompileOptions } from "../../compiler/mod.ts";
import type { RankStatistics } from "../../runtime/mod.ts";
import type { Plan } from "../../spec/plan/plan.ts";
import { checkPredictions } from "./predictions.ts";
import { type Case, compileCase, runCalls, tensorsOf } from "./run_model.ts";
import { openSession, type Sharing } from "./sessions.ts";

/** Plan and results of a case on CPU devices, with memory and sent bytes by rank. */
export interface CountedRun {
  readonly plan: Plan;
  readonly results: Awaited<ReturnType<typeof runCalls>>;
  readonly ranks: readonly RankStatistics[];
}

/** Runs a case on CPU devices. Fails unless memory, staging and sent bytes match the predictions. */
export async function countedRun(
  t: Test,
  of: Case,
  { sharing = "separate", ...options }: CompileOptions & {
    readonly sharing?: Sharing;
  } = {},
): Promise<CountedRun> {
  const plan = await compileCase(of, options);
  const session = await openSession(plan, {
    target: "cpu",
    sharing,
    statistics: true,
    tensors: await tensorsOf(of),
  });
  const results = await runCalls(of, session);
  checkPredictions(t, session);
  const { ranks } = session.statistics();
  session.close();
  return { plan, results, ranks };
}
