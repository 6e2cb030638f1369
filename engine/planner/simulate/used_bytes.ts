/** Used bytes of the buffers of a launch. */

import { modelAxis } from "../../../spec/axis_parts.ts";
import { STATES } from "../../../spec/pages.ts";
import { onRank, type PlanBuffer } from "../../../spec/plan/plan.ts";
import { isExpert, type LaunchFacts } from "./launch_facts.ts";
import type { LaunchContext } from "./launches.ts";
import type { RoutingRows } from "./routings.ts";

/** A rank, and its received rows. */
export interface RankRows {
  readonly rank: number;
  /** Undefined: the launch has no routing. */
  readonly rows: RoutingRows | undefined;
}

/** A program in a workload, with the facts of its plan. */
export interface LaunchedPlan extends LaunchContext {
  readonly facts: LaunchFacts;
  /** The maximum number of rows on a rank, of all routings. */
  readonly dispatched: number;
}

/** Used bytes of a buffer on a rank. */
export function usedBytes(
  context: LaunchedPlan,
  buffer: PlanBuffer,
  { rank, rows }: RankRows,
): number {
  const { plan, workload, lengths, dispatched } = context;
  const share = buffer.axes.reduce((part, { axis, size, dynamic }) => {
    const bound = onRank(size, rank);
    if (bound === 0) return part;
    if (buffer.kind === "state") {
      return part * Math.min(1, usedOfState(context, axis) / bound);
    }
    if (!dynamic) return part;
    const length = plan.axes[axis]
      ? lengths.max(axis)
      : rows?.max ?? dispatched;
    return part * Math.min(1, length / bound);
  }, 1);
  const bytes = onRank(buffer.bytes, rank);
  if (rows === undefined || !isExpert(plan, buffer)) return bytes * share;
  // Experts that no token chose are not read.
  const each = rows.max / rows.localExperts;
  const chosen = workload.experts === undefined ||
      workload.experts.kind === "even"
    ? Math.min(1, each)
    : 1 - Math.exp(-each);
  return bytes * shareOf(buffer, { rank, rows }) * chosen;
}

/** The used part of a state's axis: the sequences of a rank, and their positions. */
function usedOfState(
  { plan, workload, facts }: LaunchedPlan,
  axis: string,
): number {
  const { tokens, sequences = 1, past = 0 } = workload;
  const name = modelAxis(plan, axis);
  if (name === "context") return past + Math.ceil(tokens / sequences);
  return name === "sequence" || name === STATES.row
    ? Math.ceil(sequences / facts.owners)
    : Infinity;
}

/** Share of the experts of a rank that a launch has: those of its chunk. */
export function shareOf(
  { axes }: PlanBuffer,
  { rank, rows }: RankRows,
): number {
  return rows
    ? Math.min(1, rows.localExperts / onRank(axes[0]!.size, rank))
    : 1;
}
