/** Moves the current parameters of a training to another session, without a file. */

import {
  equalWeights,
  type Session,
  tensorsInMemory,
} from "../../runtime/mod.ts";
import { isTrained, type TrainedParameters } from "../../compiler/mod.ts";
import { onRank, type Plan } from "../../spec/plan/plan.ts";
import type { RolloutBytes } from "../../spec/plan_summary.ts";
import { sourceNames } from "../../spec/axis_parts.ts";
import { asInFiles, type Reading } from "./parameters.ts";

/** Bytes of weights by how rollouts get them from the training: shared, moved or copied. */
export function weightBytes(
  training: Plan,
  rollouts: Plan,
  trained?: TrainedParameters,
): Omit<RolloutBytes, "mesh"> {
  const equal = equalWeights(rollouts, training);
  const found = { shared: 0, moved: 0, copied: 0 };
  for (const { buffer, source } of rollouts.weights) {
    const how = equal.has(buffer)
      ? "shared"
      : isTrained(source, trained)
      ? "moved"
      : "copied";
    const { bytes } = rollouts.buffers[buffer]!;
    for (let rank = 0; rank < rollouts.ranks; rank++) {
      found[how] += onRank(bytes, rank);
    }
  }
  return found;
}

/**
 * Writes the trained weights of a training to the ranks of rollouts that do not share them. One weight at a time is in
 * host memory. All processes must call it. Returns the bytes that were written to ranks of this process.
 */
export async function moveWeights(
  from: Pick<Reading, "plan" | "session" | "trained">,
  to: { readonly plan: Plan; readonly session: Session },
): Promise<number> {
  const shared = equalWeights(to.plan, from.plan);
  let bytes = 0;
  for (const weight of from.plan.weights) {
    const { buffer, source } = weight;
    if (shared.has(buffer) || !isTrained(source, from.trained)) continue;
    const read = await from.session.read([buffer], { everywhere: true });
    const parts = asInFiles(from.plan, weight, read[buffer]!);
    const names = sourceNames(from.plan, weight);
    bytes += await to.session.load(
      tensorsInMemory(
        Object.fromEntries(names.map((name, i) => [name, parts[i]!])),
        "the training",
      ),
    );
  }
  return bytes;
}
