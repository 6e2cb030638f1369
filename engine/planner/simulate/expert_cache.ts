/** Predicts which streamed experts are in memory, by running an expert cache on recorded or random choices. */

import { ExpertCache } from "../../../runtime/weights/expert_cache.ts";
import { type ExpertLoad, expertShares, uniformsFrom } from "./loads.ts";
import type { RoutingRows } from "./routings.ts";
import type { Workload } from "./workload.ts";

/** Routers and steps of random choices. The second half of the steps counts. */
const ROUTERS = 4, STEPS = 128;

/** Experts of a routing in a step. */
export interface ExpertCacheUse {
  /** Share of the used experts that are in memory. */
  readonly hitRate: number;
  /** Share of all experts that a step reads. */
  readonly read: number;
}

/**
 * Use of a cache with a fraction of all experts. In a step without earlier tokens, no expert is in memory. Undefined if
 * nothing is routed.
 */
export function expertCache(
  routings: ReadonlyMap<number, RoutingRows>,
  { past = 0, experts: load = { kind: "even" } }: Workload,
  resident: number,
): ExpertCacheUse | undefined {
  const [rows] = routings.values();
  if (rows === undefined) return undefined;
  const { experts, groupTokens: tokens } = rows;
  const steps = load.kind === "recorded" && load.choices
    ? recordedSteps(load.choices, tokens)
    : randomSteps(load, rows, past === 0 ? 1 : STEPS);
  const cache = new ExpertCache(
    Math.floor(resident * steps[0]!.length * experts),
  );
  // The first step counts if there is no other.
  const from = past === 0 ? 0 : steps.length >> 1;
  const counted = past === 0 ? steps.slice(0, 1) : steps;
  let [used, missed, sets] = [0, 0, 0];
  for (const [step, routers] of counted.entries()) {
    for (const [router, chosen] of routers.entries()) {
      const ids = [...chosen].map((expert) => router * experts + expert);
      const misses = missesOf(cache, ids, step);
      if (step < from) continue;
      sets++;
      used += chosen.size;
      missed += misses;
    }
  }
  return { hitRate: 1 - missed / used, read: missed / sets / experts };
}

/** Distinct experts of each router in a step. */
type Step = readonly ReadonlySet<number>[];

function recordedSteps(
  choices: readonly (readonly number[])[][],
  tokens: number,
): Step[] {
  const count = Math.min(...choices.map(({ length }) => length));
  const each = Math.min(tokens, count);
  return Array.from(
    { length: Math.floor(count / each) },
    (_, step) =>
      choices.map((router) =>
        new Set(router.slice(step * each, (step + 1) * each).flat())
      ),
  );
}

/** Choices without replacement: the first `topK` of exponential times, whose rates have the shares of the experts. */
function randomSteps(
  load: ExpertLoad,
  { experts, topK, groupTokens }: RoutingRows,
  steps: number,
): Step[] {
  const random = uniformsFrom(experts);
  const rates = Array.from(
    { length: ROUTERS },
    (_, routing) =>
      expertShares(load, { experts, topK, routing })
        .map((share) => -Math.log1p(-Math.min(share, 1 - 1e-9))),
  );
  const choose = (rates: readonly number[]) =>
    rates.map((rate, expert) => ({ expert, at: -Math.log(random()) / rate }))
      .sort((a, b) => a.at - b.at).slice(0, topK).map(({ expert }) => expert);
  return Array.from({ length: steps }, () =>
    rates.map((rates) => {
      const chosen = new Set<number>();
      for (let i = 0; i < groupTokens && chosen.size < experts; i++) {
        for (const expert of choose(rates)) chosen.add(expert);
      }
      return chosen;
    }));
}

/** Uses experts in a step. Returns the number of experts that were not in memory. */
function missesOf(
  cache: ExpertCache,
  ids: readonly number[],
  step: number,
): number {
  const wanted = new Set(ids);
  for (const id of ids) cache.use(id, step);
  const missing = ids.filter((id) => cache.slot(id) === undefined);
  for (const id of missing) {
    if (cache.assign(id, wanted) === undefined) break;
  }
  return missing.length;
}
