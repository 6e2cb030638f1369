/** Comparison of the figures of two plans. */

import type { PlanSummary, RankBytes } from "../spec/plan_summary.ts";
import { sizeText } from "../spec/size_text.ts";
import type { SentPerToken } from "./traffic.ts";
import { meshText } from "./tracks.ts";

/** A plan in the comparison. */
export interface Side {
  readonly summary: PlanSummary;
  readonly sent: SentPerToken;
}

/** Returns table rows with a figure's name and its value in each plan. */
export function sideBySide(
  mine: Side,
  other: Side,
): (readonly [what: string, mine: string, other: string])[] {
  const max = (
    { summary: { ranks } }: Side,
    kind: keyof RankBytes,
  ) => sizeText(Math.max(...ranks.map(({ bytes }) => bytes[kind])));
  const of = (read: (side: Side) => string) =>
    [read(mine), read(other)] as const;
  return [
    ["mesh", ...of(({ summary }) => meshText(summary))],
    ...(["weights", "state", "scratch", "staging", "total"] as const)
      .map((kind) =>
        [`${kind}, fullest rank`, ...of((s) => max(s, kind))] as const
      ),
    ...(["dispatch", "combine"] as const).map((op) =>
      [
        `${op} of a token to others`,
        ...of(({ sent }) => sizeText(Math.round(sent[op]))),
      ] as const
    ),
    ["what does not fit", ...of((s) => `${s.summary.problems.length}`)],
  ];
}
