/** Paged caches and rows of states, from a plan. */

import { groupSizeOf } from "../../spec/mesh.ts";
import { type Seen, seenThrough, STATES, WITHIN } from "../../spec/pages.ts";
import type { Plan, Program } from "../../spec/plan/plan.ts";
import { tableIds } from "../../spec/table.ts";

/** The pages of layers that see the same positions. */
export interface PageGroup {
  /** The input with their page table. */
  readonly input: string;
  readonly seen: Seen;
  /** Pages per rank. */
  readonly count: number;
}

/** The pages of a plan's caches. */
export interface PagesShape {
  /** Positions per page. */
  readonly size: number;
  readonly groups: readonly PageGroup[];
  /** Maximum pages per sequence. */
  readonly blocks: number;
  /** The number of ranks that share the pages of a sequence, each with consecutive ones. Default: 1. */
  readonly sharing?: number;
  /** For each sequence, the group rank with its pages. */
  readonly owners: readonly number[];
  /** Whether sequences have recurrent states without snapshots, so that prefixes cannot be shared. */
  readonly recurrent?: boolean;
  /** Rows of recurrent states per rank, with those of snapshots. */
  readonly rows?: number | undefined;
}

/**
 * Whether sequences have states besides caches: matrices of recurrences, inputs of convolutions. They contain only the
 * last token.
 */
export function isRecurrent({ buffers }: Plan): boolean {
  return Object.values(buffers).some(({ kind, axes }) =>
    kind === "state" &&
    !axes.some(({ axis }) => axis === "context" || axis === WITHIN)
  );
}

/** The pages of a decoder's plan. Undefined if caches are not paged. */
export function pagesShape(
  plan: Plan,
  { inputs }: Program,
): PagesShape | undefined {
  const ports = Object.entries(inputs).flatMap(([input, port]) => {
    const seen = seenThrough(input);
    return seen ? [{ input, seen, port }] : [];
  });
  if (ports.length === 0) return undefined;
  const [sequence, block] = ports[0]!.port.axes.map((name) =>
    plan.axes[name]!
  ) as [Plan["axes"][string], Plan["axes"][string]];
  const { size, table, over = [] } = sequence;
  const owners = new Array<number>(size).fill(0);
  if (table) {
    const groupSize = groupSizeOf(plan.mesh, over);
    for (let at = 0; at < groupSize; at++) {
      for (const id of tableIds({ size, table }, groupSize, at)) {
        owners[id] = at;
      }
    }
  }
  const rows = inputs[STATES.input]?.below;
  return {
    size: plan.axes[WITHIN]!.size,
    groups: ports.map(({ input, seen, port }) => ({
      input,
      seen,
      count: port.below!,
    })),
    blocks: block.size,
    sharing: groupSizeOf(plan.mesh, block.over ?? []),
    owners,
    recurrent: rows === undefined && isRecurrent(plan),
    rows,
  };
}
