/**
 * Rejects the dispatcher `gatherWeights` without compiling it, where gathering alone takes longer than another plan.
 */

import { placeRanks } from "../../../spec/machine.ts";
import { range } from "../../../spec/range.ts";
import { sum } from "../../../spec/sum.ts";
import { minExchangeSeconds } from "../simulate/exchange_time.ts";
import { levelsOf } from "../simulate/peer_bytes.ts";
import { fileBytes, type ModelWeights } from "../summary/weights.ts";
import type { ReplicaStep, SearchStrategy, SearchTask } from "./evaluate.ts";
import { expertRanks, type ReplicaMesh } from "./meshes.ts";

/**
 * Whether the steps of another strategy of the same mesh and load are faster, and need less memory, than gathering the
 * experts of every layer. False if unknown: with pipeline stages, which gather concurrently, sliced experts, and ranks
 * that share a device.
 */
export function beatGathering(
  steps: readonly ReplicaStep[],
  { strategy: { dispatcher, sliceExperts }, task, weights }: {
    readonly strategy: SearchStrategy;
    readonly task: SearchTask;
    readonly weights: ModelWeights;
  },
): boolean {
  const [{ of: { mesh, fullest: { bytes } } }] = steps as [ReplicaStep];
  if (dispatcher !== "gatherWeights" || sliceExperts) return false;
  const experts = weights.params.filter(({ expert }) => expert !== undefined);
  const of = (param: typeof experts[number]) =>
    fileBytes(param, weights.storedAs);
  // All experts of a parameter are in memory at once.
  const gathered = Math.max(0, ...experts.map(of));
  if (bytes.total > bytes.weights + bytes.state + gathered) return false;
  const all = sum(
    experts.map((param) =>
      weights.representatives.times(param.name) * of(param)
    ),
  );
  const min = gatherSeconds(task, mesh, all);
  return steps.every(({ step }) => step.seconds < min);
}

/**
 * Lower bound of the seconds in which every rank receives the experts of the others, of these bytes in total. 0 with
 * pipeline stages, and if ranks share a device.
 */
function gatherSeconds(
  { machine }: SearchTask,
  mesh: ReplicaMesh,
  bytes: number,
): number {
  const { pp = 1 } = mesh;
  const ranks = expertRanks(mesh);
  const placements = placeRanks(machine).slice(0, ranks);
  const devices = new Set(placements.map(({ device }) => device));
  if (pp > 1 || devices.size < ranks) return 0;
  const each = bytes / ranks;
  const levels = levelsOf(placements, {
    rank: 0,
    group: range(ranks),
    each,
    mean: each,
  });
  return minExchangeSeconds(machine, { levels });
}
