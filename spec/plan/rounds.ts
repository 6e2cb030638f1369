/** Rounds of an exchange whose receive buffers have room for a part of the rows. */

import { sum } from "../sum.ts";
import type { Plan, RoundsStep, Step } from "./plan.ts";

/** Counts of a routing, by group rank and expert. */
type Counts = readonly (readonly number[])[];

/** The share of an even load that receive buffers have room for, or their number of rows. */
export const RECEIVE_ROWS_PATTERN = "^([1-9]\\d{0,8}|\\d{1,4}(\\.\\d{1,4})?x)$";

/** Rows for `--receive-rows`: a number, or a factor of the even share, `1.25x`. At least one. */
export function receiveRows(text: string, evenShare: number): number {
  const rows = text.endsWith("x")
    ? Math.ceil(parseFloat(text) * evenShare)
    : Number(text);
  return Math.max(1, rows);
}

/** The rows of receive buffers, chosen and in the worst case, by size; empty if all have the worst case. */
export function receiveTexts({ programs }: Pick<Plan, "programs">): string[] {
  const texts = programs.flatMap(({ steps }) =>
    steps.flatMap((step) =>
      step.op === "rounds"
        ? [`${step.rows} rows per rank, of up to ${step.maxRows}`]
        : []
    )
  );
  return [...new Set(texts)];
}

/** Number of rounds: at least one. */
export function roundCount(
  counts: Counts,
  { splits, rows }: Pick<RoundsStep, "splits" | "rows">,
): number {
  const received = splits.slice(1).map((end, p) =>
    sum(counts.map((row) => sum(row.slice(splits[p], end))))
  );
  return Math.max(1, Math.ceil(Math.max(...received) / rows));
}

/** The counts of a round: by group rank, the rows of each expert, then the offset of the first row to each rank. */
export function countsOfRound(
  counts: Counts,
  { splits, rows }: Pick<RoundsStep, "splits" | "rows">,
  round: number,
): number[][] {
  const [first, end] = [round * rows, (round + 1) * rows];
  const within = counts.map((row) => row.slice(0, splits.at(-1)).fill(0));
  const offsets = counts.map((row) =>
    splits.slice(0, -1).map((expert) => sum(row.slice(0, expert)))
  );
  for (const [p, start] of splits.slice(0, -1).entries()) {
    let before = 0;
    for (let expert = start; expert < splits[p + 1]!; expert++) {
      for (const [source, row] of counts.entries()) {
        const after = before + row[expert]!;
        const [from, to] = [Math.max(before, first), Math.min(after, end)];
        within[source]![expert] = Math.max(0, to - from);
        offsets[source]![p]! += Math.max(0, Math.min(after, first) - before);
        before = after;
      }
    }
  }
  return within.map((row, source) => [...row, ...offsets[source]!]);
}

/** The steps from a `rounds` step to the last one that it repeats. */
export interface Loop {
  readonly first: number;
  readonly last: number;
}

/** The loops of a program: each ends with the last exchange by the counts of its rounds. */
export function loopsOf(steps: readonly Step[]): Loop[] {
  return steps.flatMap((step, first) => {
    if (step.op !== "rounds") return [];
    const last = steps.findLastIndex((other) =>
      other.op === "allToAll" && other.counts === step.to
    );
    return [{ first, last: Math.max(first, last) }];
  });
}

/**
 * The live range of a buffer, given its first and last uses. A buffer that a loop only reads is live until the end of
 * the loop. A buffer that a loop writes and a later step reads is live from the start of the loop.
 */
export function liveInLoops(
  { first, last }: Loop,
  loops: readonly Loop[],
): Loop {
  const inside = (at: number, loop: Loop) =>
    loop.first <= at && at <= loop.last;
  return {
    first: loops.find((loop) => inside(first, loop) && last > loop.last)
      ?.first ?? first,
    last: loops.find((loop) => inside(last, loop) && first < loop.first)
      ?.last ?? last,
  };
}
