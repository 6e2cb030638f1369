/** The picture of recorded choices: the frequency of each expert, and the path of one token to its experts and back. */

import { heldOn } from "./house.ts";
import type { LayerChoices } from "../page_data.ts";
import type { PlanView } from "../plan_view.ts";
import type { Figure, Point, Shape } from "./figure.ts";
import { hopsOf, weightText } from "../token_way.ts";

/** Options of a picture of choices. */
export interface TokenPictureOptions {
  readonly choices: readonly LayerChoices[];
  /** Number of the token whose path is drawn. */
  readonly token: number;
  /** Its rank, if known. */
  readonly sourceRank?: number | undefined;
}

const WIDTH = 1180;
const LEFT = 120;
const TOP = 40;

/** Minimum width of columns with room for the path between them. */
const ROOMY = 90;

/** Draws layers to the right and experts downwards, grouped by rank. */
export function tokenPicture(
  view: PlanView,
  { choices, token, sourceRank }: TokenPictureOptions,
): Figure {
  const rows = rowsOf(view, choices);
  const height = Math.max(5, Math.min(24, 720 / rows.length));
  const width = Math.min(260, (WIDTH - LEFT - 10) / choices.length);
  const roomy = width >= ROOMY;
  const inset = roomy && sourceRank !== undefined ? width * 0.25 : 1;
  const yOf = (row: number) => TOP + (row + 0.5) * height;
  const loads = choices.map(loadOf);
  const max = Math.max(1, ...loads.flatMap((load) => [...load.values()]));
  const boxes = choices.flatMap(({ layer }, column) =>
    rows.map(({ expert, rank }, row): Shape => {
      const load = loads[column]!.get(expert) ?? 0;
      return {
        kind: "rect",
        ink: "experts",
        at: [LEFT + column * width + inset, TOP + row * height + 0.5] as const,
        size: [width - 2 * inset, height - 1] as const,
        opacity: Number((0.06 + 0.6 * load / max).toFixed(2)),
        title: `layer ${layer}, expert ${expert}${
          rank === undefined ? "" : ` on rank ${rank}`
        }: chosen ${load} ${load === 1 ? "time" : "times"}`,
      };
    })
  );
  const heights = rows.flatMap(({ rank }, row) =>
    rank === sourceRank ? [yOf(row)] : []
  );
  const middle = heights.reduce((sum, y) => sum + y, 0) / heights.length;
  const way = choices.flatMap((of, column): Shape[] => {
    const x = LEFT + column * width;
    const hops = hopsOf(view, of, { token, sourceRank });
    const marks = hops.flatMap(({ expert, weight, ranks }): Shape[] => {
      const row = rows.findIndex((one) => one.expert === expert);
      const at: Point = [
        x + (roomy ? width * 0.35 : width * 0.25),
        yOf(row) - height * 0.36,
      ];
      const size: Point = [roomy ? width * 0.3 : width * 0.5, height * 0.72];
      const text = weight === undefined ? "" : weightText(weight);
      return [
        {
          kind: "rect",
          ink: "card",
          border: "ink",
          radius: 3,
          at,
          size,
          title: `token ${token} in layer ${of.layer}: expert ${expert}${
            ranks.length === 0 ? "" : ` on rank ${ranks.join("/")}`
          }${text === "" ? "" : `, weight ${text}`}`,
        },
        ...roomy && height >= 14
          ? [{
            kind: "text" as const,
            anchor: "middle" as const,
            size: 11,
            text,
            at: [at[0] + size[0] / 2, yOf(row) + 4] as const,
          }]
          : [],
      ];
    });
    if (inset === 1 || heights.length === 0) return marks;
    const curves = hops.flatMap(({ expert, weight = 0.5 }): Shape[] => {
      const y = yOf(rows.findIndex((one) => one.expert === expert));
      const thick = Number((1 + 4 * Math.min(1, weight)).toFixed(1));
      const [first, last] = [x + width * 0.35, x + width * 0.65];
      return [
        curve([x, middle], [first, y], thick, "dispatch"),
        curve([last, y], [x + width, middle], thick, "combine"),
      ];
    });
    return [...curves, ...marks];
  });
  const names = rows.flatMap(({ expert, rank }, row): Shape[] => {
    const opens = row === 0 || rows[row - 1]!.rank !== rank;
    const few = height >= 11;
    return [
      ...few
        ? [{
          kind: "text" as const,
          anchor: "end" as const,
          size: 11,
          ink: "soft" as const,
          text: `${expert}`,
          at: [LEFT - 8, yOf(row) + 4] as const,
        }]
        : [],
      ...opens && rank !== undefined && (few || row % 16 === 0)
        ? [{
          kind: "text" as const,
          anchor: "end" as const,
          size: 11.5,
          text: `rank ${rank}`,
          bold: rank === sourceRank,
          at: [LEFT - 36, yOf(row) + 4] as const,
        }]
        : [],
    ];
  });
  const heads = choices.map(({ layer }, column): Shape => ({
    kind: "text",
    anchor: "middle",
    size: 11,
    ink: "soft",
    at: [LEFT + (column + 0.5) * width, TOP - 8],
    text: choices.length > 20 && column % 5 > 0 ? "" : `layer ${layer}`,
  }));
  return {
    size: [LEFT + choices.length * width + 10, TOP + rows.length * height + 8],
    label: `how often experts were chosen, and those of token ${token}`,
    shapes: [...names, ...heads, ...boxes, ...way],
  };
}

function curve(
  [x, y]: Point,
  [endX, endY]: Point,
  width: number,
  ink: "dispatch" | "combine",
): Shape {
  const bend = (x + endX) / 2;
  return {
    kind: "path",
    ink,
    width,
    opacity: 0.9,
    d: `M${[x, y].map(text).join(" ")} C${
      [bend, y, bend, endY, endX, endY].map(text).join(" ")
    }`,
  };
}

function text(x: number): string {
  return x.toFixed(1);
}

interface Row {
  readonly expert: number;
  readonly rank: number | undefined;
}

/** Sorts experts by the first rank that holds them. */
function rowsOf(
  view: PlanView,
  choices: readonly LayerChoices[],
): readonly Row[] {
  const seen = new Set<number>();
  const rows: Row[] = [];
  for (let rank = 0; rank < view.plan.ranks; rank++) {
    const held = heldOn(view.plan, rank).flatMap(({ experts }) => experts);
    for (const expert of held) {
      if (seen.has(expert)) continue;
      seen.add(expert);
      rows.push({ expert, rank });
    }
  }
  if (rows.length > 0) return rows;
  const max = choices.reduce(
    (max, { chosen }) =>
      chosen.reduce((max, experts) => Math.max(max, ...experts), max),
    0,
  );
  return Array.from(
    { length: max + 1 },
    (_, expert) => ({ expert, rank: undefined }),
  );
}

/** Returns how often each expert was chosen. */
function loadOf({ chosen }: LayerChoices): Map<number, number> {
  const load = new Map<number, number>();
  for (const expert of chosen.flat()) {
    load.set(expert, (load.get(expert) ?? 0) + 1);
  }
  return load;
}
