/** Runs of a case whose bytes are counted, and are those that its plan predicts. */

import type { Test } from "tap";
import type { CompileOptions } from "../../compiler/mod.ts";
import type { RankStatistics } from "../../runtime/mod.ts";
import type { Plan } from "../../spec/plan/plan.ts";
import { checkPredictions } from "./predictions.ts";
import { type Case, compileCase, runCalls, tensorsOf } from "./run_model.ts";
import { openSession, type Sharing } from "./sessions.ts";

/** What a case computes on CPU devices, and what ranks held and sent for it. */
export interface CountedRun {
  readonly plan: Plan;
  readonly results: Awaited<ReturnType<typeof runCalls>>;
  readonly ranks: readonly RankStatistics[];
}

/** Run a case; memory, staging and bytes sent must be as predicted. Ranks have devices of their own, or share one. */
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
