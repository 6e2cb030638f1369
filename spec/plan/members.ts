/** The ranks that take part in a collective. */

import { groupOf, isIn, type Mesh, type RankSet } from "../mesh.ts";
import type { CollectiveStep, Step } from "./plan.ts";

/** Whether a step is a collective. */
export function isCollective(step: Step): step is CollectiveStep {
  return step.op === "allGather" || step.op === "allToAll" ||
    step.op === "send";
}

/**
 * The ranks that exchange data with `rank` in a collective, and itself, by group rank. A send has two: 0 sends to 1.
 */
export function membersOf(
  mesh: Mesh,
  rank: number,
  step: Pick<CollectiveStep, "over"> & {
    readonly stages?: readonly [number, number];
  },
): number[] {
  const group = groupOf(mesh, rank, step.over);
  return step.stages?.map((stage) => group[stage]!) ?? group;
}

/** The ranks that read the operands of a step, and those that write its results. */
export function sidesOf(
  step: Step,
): { readonly reads: RankSet; readonly writes: RankSet } {
  if (step.op !== "send") return { reads: step.ranks, writes: step.ranks };
  const axis = step.over[0]!;
  const [source, destination] = step.stages;
  const others = step.ranks === "all" ? {} : step.ranks;
  return {
    reads: { ...others, [axis]: [source] },
    writes: { ...others, [axis]: [destination] },
  };
}

/** Whether a rank executes a step. */
export function executes(mesh: Mesh, rank: number, { ranks }: Step): boolean {
  return isIn(ranks, mesh, rank);
}
