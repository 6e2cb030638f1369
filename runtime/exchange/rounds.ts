/** Rounds of an exchange at run time, from the counts of its ranks. */

import { countsOfRound, roundCount } from "../../spec/plan/rounds.ts";
import type { RoundsStep } from "../../spec/plan/plan.ts";
import type { CommunicatorContext } from "./communicator.ts";
import type { Counts } from "./exchange.ts";
import { bytesOf } from "../host_tensor.ts";
import type { RankMemory } from "../memory.ts";

/** The rounds of the ranks in this process. */
export interface BoundRounds {
  /** Returns the number of rounds of the group that has the most. */
  begin(): Promise<number>;
  /** Writes the counts of a round, by number from 0. */
  start(round: number): void;
}

/**
 * Binds a `rounds` step for groups of ranks, of each those in this process. A group with fewer rounds than others
 * exchanges no rows in the last ones.
 */
export function bindRounds(
  step: RoundsStep,
  groups: readonly (readonly RankMemory[])[],
  { known }: CommunicatorContext,
): BoundRounds {
  let counts: readonly Counts[] = [];
  return {
    async begin() {
      counts = await Promise.all(
        groups.map(([memory]) =>
          known.of(step, memory!, step.splits.length - 1)
        ),
      );
      return Math.max(...counts.map((group) => roundCount(group, step)));
    },
    start(round) {
      for (const [i, group] of groups.entries()) {
        const now = countsOfRound(counts[i]!, step, round);
        const bytes = bytesOf(Uint32Array.from(now.flat()));
        for (const memory of group) {
          memory.write(step.to, 0, bytes);
          known.set(memory, step.to, now);
        }
      }
    },
  };
}
