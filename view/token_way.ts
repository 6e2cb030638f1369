/** The path of a token through a layer of a recorded run: from its rank to the ranks of its experts. */

import { modelAxis } from "../spec/axis_parts.ts";
import type { Plan } from "../spec/plan/plan.ts";
import { expertsOn } from "./pictures/house.ts";
import type { LayerChoices, TraceEvent } from "./page_data.ts";
import type { PlanView } from "./plan_view.ts";
import { recordedOf } from "./recorded.ts";
import { groupOfRanks } from "./tracks.ts";

/** An expert that a token was sent to. */
export interface Hop {
  readonly expert: number;
  /** Its weight. Undefined if the run did not record it. */
  readonly weight: number | undefined;
  /** The ranks of the expert. Several if they depend on the unknown rank of the token. Empty: it is on each rank. */
  readonly ranks: readonly number[];
}

/**
 * Returns the rank of each token from the runs of the program that chose experts. Undefined if the recorded runs have
 * another number of tokens.
 */
export function sourceRanksOf(
  plan: Pick<Plan, "programs" | "axes">,
  [first]: readonly LayerChoices[],
  trace: readonly TraceEvent[] = [],
): readonly number[] | undefined {
  for (const program of plan.programs) {
    const axis = first &&
      program.outputs[first.output]?.axes[0];
    if (axis === undefined) continue;
    const sourceRanks = recordedOf(trace, program).sourceRanks(
      modelAxis(plan, axis),
    );
    if (sourceRanks.length === first!.chosen.length) return sourceRanks;
  }
  return undefined;
}

/** Returns the path of a token through a layer, in the order of its choices. */
export function hopsOf(
  { plan }: PlanView,
  { layer, chosen, weights }: LayerChoices,
  { token, sourceRank }: {
    readonly token: number;
    readonly sourceRank: number | undefined;
  },
): Hop[] {
  const destinations = destinationsFrom(plan, sourceRank);
  return chosen[token]!.map((expert, i) => ({
    expert,
    weight: weights?.[token]?.[i],
    ranks: destinations.filter((rank) =>
      expertsOn(plan, { rank, layer }).includes(expert)
    ),
  }));
}

/** `0.618` */
export function weightText(weight: number): string {
  return weight.toFixed(3);
}

/** Returns the ranks that receive rows from a rank: its group over the mesh axes of the experts. */
function destinationsFrom(
  plan: Plan,
  sourceRank: number | undefined,
): number[] {
  const all = Array.from({ length: plan.ranks }, (_, rank) => rank);
  if (sourceRank === undefined) return all;
  const { over = [] } =
    Object.values(plan.axes).find(({ experts, table, over }) =>
      experts && table && over
    ) ?? {};
  const groups = groupOfRanks(plan.mesh, over);
  return all.filter((rank) => groups[rank] === groups[sourceRank]);
}
