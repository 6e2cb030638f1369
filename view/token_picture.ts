/** The picture of recorded choices: how often each expert was chosen, and which ones a token chose. */

import { expertsOn } from "./house_picture.ts";
import type { LayerChoices } from "./page_data.ts";
import type { PlanView } from "./plan_view.ts";
import type { Scene, Shape } from "./scene.ts";

/** What a picture of choices shows. */
export interface TokenPictureOptions {
  readonly choices: readonly LayerChoices[];
  /** Number of the token whose experts are marked. */
  readonly token: number;
}

const WIDTH = 1180;
const LEFT = 120;
const TOP = 40;

/** Layers to the right, experts downwards, those of one rank together. */
export function tokenPicture(
  view: PlanView,
  { choices, token }: TokenPictureOptions,
): Scene {
  const rows = rowsOf(view, choices);
  const height = Math.max(5, Math.min(24, 720 / rows.length));
  const width = Math.min(120, (WIDTH - LEFT - 10) / choices.length);
  const loads = choices.map(loadOf);
  const most = Math.max(1, ...loads.flatMap((load) => [...load.values()]));
  const shapes = choices.flatMap(({ layer, chosen }, column) => {
    const x = LEFT + column * width;
    return rows.flatMap(({ expert, rank }, row): Shape[] => {
      const y = TOP + row * height;
      const load = loads[column]!.get(expert) ?? 0;
      const mine = chosen[token]?.includes(expert) ?? false;
      return [
        {
          ...{ kind: "rect", at: [x + 1, y + 0.5], ink: "experts" },
          size: [width - 2, height - 1] as const,
          opacity: Number((0.06 + 0.6 * load / most).toFixed(2)),
          title: `layer ${layer}, expert ${expert}${
            rank === undefined ? "" : ` on rank ${rank}`
          }: chosen ${load} times`,
        },
        ...mine
          ? [{
            ...{ kind: "rect" as const, ink: "dispatch" as const, radius: 3 },
            at: [x + width * 0.3, y + height * 0.18] as const,
            size: [width * 0.4, height * 0.64] as const,
            ...{ border: "ink" as const },
            title: `token ${token} in layer ${layer}: expert ${expert}`,
          }]
          : [],
      ];
    });
  });
  const names = rows.flatMap(({ expert, rank }, row): Shape[] => {
    const opens = row === 0 || rows[row - 1]!.rank !== rank;
    const few = height >= 11;
    return [
      ...few
        ? [{
          ...{ kind: "text" as const, anchor: "end" as const, size: 11 },
          ...{ ink: "soft" as const, text: `${expert}` },
          at: [LEFT - 8, TOP + row * height + height / 2 + 4] as const,
        }]
        : [],
      ...opens && rank !== undefined && (few || row % 16 === 0)
        ? [{
          ...{ kind: "text" as const, anchor: "end" as const, size: 11.5 },
          ...{ text: `rank ${rank}` },
          at: [LEFT - 36, TOP + row * height + height / 2 + 4] as const,
        }]
        : [],
    ];
  });
  const heads = choices.map(({ layer }, column): Shape => ({
    ...{ kind: "text", anchor: "middle", size: 11, ink: "soft" },
    at: [LEFT + (column + 0.5) * width, TOP - 8],
    text: choices.length > 20 && column % 5 > 0 ? "" : `layer ${layer}`,
  }));
  return {
    size: [LEFT + choices.length * width + 10, TOP + rows.length * height + 8],
    label: `how often experts were chosen, and those of token ${token}`,
    shapes: [...names, ...heads, ...shapes],
  };
}

interface Row {
  readonly expert: number;
  readonly rank: number | undefined;
}

/** Experts by the first rank that holds them. */
function rowsOf(
  view: PlanView,
  choices: readonly LayerChoices[],
): readonly Row[] {
  const seen = new Set<number>();
  const rows: Row[] = [];
  for (let rank = 0; rank < view.plan.ranks; rank++) {
    for (const expert of expertsOn(view.plan, rank)) {
      if (seen.has(expert)) continue;
      seen.add(expert);
      rows.push({ expert, rank });
    }
  }
  if (rows.length > 0) return rows;
  const most = choices.reduce(
    (max, { chosen }) =>
      chosen.reduce((max, experts) => Math.max(max, ...experts), max),
    0,
  );
  return Array.from(
    { length: most + 1 },
    (_, expert) => ({ expert, rank: undefined }),
  );
}

/** How often each expert was chosen. */
function loadOf({ chosen }: LayerChoices): Map<number, number> {
  const load = new Map<number, number>();
  for (const expert of chosen.flat()) {
    load.set(expert, (load.get(expert) ?? 0) + 1);
  }
  return load;
}

/** The ranks that hold an expert. */
export function ranksWith({ plan }: PlanView, expert: number): number[] {
  return Array.from({ length: plan.ranks }, (_, rank) => rank)
    .filter((rank) => expertsOn(plan, rank).includes(expert));
}
