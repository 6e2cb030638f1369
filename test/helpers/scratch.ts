/** Measures scratch memory of plans: live and allocated bytes. */

import { maxOverRanks, type Plan } from "../../spec/plan/plan.ts";
import { livesOf } from "../../spec/plan/lives.ts";
import { collectFacts } from "../../spec/plan/facts.ts";

/** Bytes on the rank with most. */
export interface Scratch {
  /** Maximum live bytes at a step of any program. */
  readonly live: number;
  /** Bytes of all allocations with scratch buffers. */
  readonly allocated: number;
  /** Number of allocations with scratch buffers. */
  readonly allocations: number;
}

/** Measures the scratch memory of a plan. */
export function scratchOf(plan: Plan): Scratch {
  const facts = collectFacts(plan);
  let live = 0;
  for (const program of facts.programs) {
    const changes = new Array<number>(program.steps.length + 2).fill(0);
    for (const { name, first, last } of livesOf(facts, program).values()) {
      const { kind, bytes } = plan.buffers[name]!;
      if (kind !== "scratch") continue;
      changes[first]! += maxOverRanks(bytes);
      changes[last + 1]! -= maxOverRanks(bytes);
    }
    let now = 0;
    for (const change of changes) live = Math.max(live, now += change);
  }
  const used = new Set(
    Object.values(plan.buffers)
      .filter(({ kind }) => kind === "scratch")
      .map(({ allocation }) => allocation),
  );
  const allocated = [...used].reduce(
    (n, i) => n + maxOverRanks(plan.allocations[i]!.bytes),
    0,
  );
  return { live, allocated, allocations: used.size };
}
