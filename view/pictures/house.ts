/** The picture of the ranks: their memory by kind, and their experts. */

import { indicesOn } from "../../spec/axis_parts.ts";
import type { Plan } from "../../spec/plan/plan.ts";
import type { RankBytes, RankClass } from "../../spec/plan_summary.ts";
import { layerOf } from "../../spec/plan/layers.ts";
import { rankClasses } from "../../spec/plan/rank_classes.ts";
import { sizeText } from "../../spec/size_text.ts";
import { idsText } from "../../spec/text/parts.ts";
import type { Ink } from "../palette.ts";
import type { PlanView } from "../plan_view.ts";
import { type Figure, type Shape, shortened } from "./figure.ts";
import { layersText } from "../sections.ts";
import { coordinatesText, meshText } from "../tracks.ts";

/** The kinds of memory with their display names. */
export const MEMORY_KINDS: readonly {
  readonly kind: Exclude<keyof RankBytes, "total">;
  readonly name: string;
}[] = [
  { kind: "weights", name: "weights" },
  { kind: "state", name: "KV cache or optimizer state" },
  { kind: "scratch", name: "activations, inputs and outputs" },
  { kind: "staging", name: "staging of exchanges" },
];

const WIDTH = 1180;
const COLUMNS = 4;
const GAP = 12;
const CARD = [(WIDTH - GAP * (COLUMNS - 1)) / COLUMNS, 84] as const;

/** Maximum number of ranks with one card each. More ranks are shown by class and as a grid. */
const FEW = 16;

/**
 * Draws the contents of ranks. Few ranks have one card each. Many ranks have one card per class, above the mesh as a
 * grid.
 */
export function housePicture(view: PlanView): Figure {
  const { plan, summary } = view;
  const classes = classOfRanks(plan, summary.ranks);
  const max = Math.max(
    ...summary.ranks.map(({ bytes, limit }) => limit ?? bytes.total),
  );
  const few = plan.ranks <= FEW;
  const cards = few
    ? classes.map((of, rank) => ({ of, rank, title: `rank ${rank}` }))
    : summary.ranks.slice(0, FEW).map((of) => ({
      of,
      rank: of.first,
      title: of.count === 1
        ? `rank ${of.first}`
        : of.count === plan.ranks
        ? `each of ${of.count} ranks`
        : `${of.count} ranks like rank ${of.first}`,
    }));
  const shapes = cards.flatMap((card, i) =>
    cardShapes(view, {
      ...card,
      max,
      at: [
        (i % COLUMNS) * (CARD[0] + GAP),
        Math.floor(i / COLUMNS) * (CARD[1] + GAP),
      ],
    })
  );
  const height = Math.ceil(cards.length / COLUMNS) * (CARD[1] + GAP) - GAP;
  const grid = few
    ? { shapes: [], height: 0 }
    : gridShapes(view, { classes, top: height + 2 * GAP });
  return {
    size: [WIDTH, height + grid.height],
    label: `memory of ${plan.ranks} ranks, at most ${
      sizeText(Math.max(...summary.ranks.map(({ bytes }) => bytes.total)))
    } on one`,
    shapes: [...shapes, ...grid.shapes],
  };
}

/** Returns the class of each rank. */
export function classOfRanks(
  plan: Plan,
  ranks: readonly RankClass[],
): RankClass[] {
  const equal = rankClasses(plan);
  return equal.map((of, rank) =>
    ranks.findLast(({ first }) => first <= rank && equal[first] === of) ??
      ranks[0]!
  );
}

/** Returns the experts of a layer on a rank. */
export function expertsOn(
  plan: Plan,
  { rank, layer }: { readonly rank: number; readonly layer: number },
): readonly number[] {
  const held = heldOn(plan, rank);
  const found = held.find(({ layers }) => layers.includes(layer)) ?? held[0];
  return found?.experts ?? [];
}

/** The experts of some layers on a rank. */
export interface HeldExperts {
  readonly experts: readonly number[];
  /** The numbers of these layers. Empty if the experts are the same in all layers. */
  readonly layers: readonly number[];
}

/**
 * Returns the experts on a rank, with equal lists combined: layers may differ in their numbers of experts or in their
 * placement tables.
 */
export function heldOn(plan: Plan, rank: number): readonly HeldExperts[] {
  const held = new Map<
    string,
    { experts: readonly number[]; layers: number[] }
  >();
  for (const [name, { experts, table, over }] of Object.entries(plan.axes)) {
    if (!experts || !table || !over) continue;
    const list = indicesOn(plan, name, rank) ?? [];
    const key = list.join();
    const known = held.get(key) ?? { experts: list, layers: [] };
    held.set(key, known);
    const layer = layerOf(name);
    if (layer !== undefined) known.layers.push(layer);
  }
  return [...held.values()];
}

/**
 * Formats experts as `0..15`, or as `0 1 2 (layer 0), 0..4 (layers 1–3)` if layers differ. Empty if a rank has no
 * experts of its own.
 */
export function heldText(plan: Plan, rank: number): string {
  const held = heldOn(plan, rank);
  return held.map(({ experts, layers }) => {
    const ids = idsText(experts);
    if (held.length === 1 || layers.length === 0) return ids;
    const noun = layers.length === 1 ? "layer" : "layers";
    return `${ids} (${noun} ${layersText(layers)})`;
  }).join(", ");
}

function cardShapes(
  view: PlanView,
  { of, rank, title, max, at: [x, y] }: {
    readonly of: RankClass;
    readonly rank: number;
    readonly title: string;
    readonly max: number;
    readonly at: readonly [number, number];
  },
): Shape[] {
  const { bytes, limit, headroom } = of;
  const [width, height] = CARD;
  const inner = width - 26;
  let from = x + 13;
  const bars = MEMORY_KINDS.flatMap(({ kind, name }): Shape[] => {
    if (bytes[kind] <= 0) return [];
    // A minimum width keeps small parts visible.
    const long = Math.max(1.5, inner * bytes[kind] / max);
    const bar: Shape = {
      kind: "rect",
      at: [from, y + 34],
      size: [long, 14],
      ink: kind,
      title: `${name}: ${sizeText(bytes[kind])}`,
    };
    from += long;
    return [bar];
  });
  const lists = heldOn(view.plan, rank);
  const experts = lists[0]?.experts ?? [];
  const held = experts.length > 0 ? experts.length : Math.max(0, ...of.experts);
  const many = lists.length > 1 || held > 8 || view.plan.ranks > FEW;
  return [
    {
      kind: "rect",
      at: [x + 0.5, y + 0.5],
      ink: "card",
      radius: 9,
      size: [width - 1, height - 1] as const,
      border: "line" as const,
      title: coordinatesText(view.plan, rank),
    },
    {
      kind: "text",
      at: [x + 13, y + 24],
      text: title,
      size: 13.5,
      bold: true,
    },
    {
      // There is no room beside a long title.
      kind: "text",
      at: [x + width - 13, y + (title.length < 10 ? 24 : 70)],
      anchor: "end",
      size: 12.5,
      ink: "soft",
      text: limit === undefined
        ? sizeText(bytes.total)
        : `${sizeText(bytes.total)} of ${sizeText(limit)}${
          headroom! < 0 ? ", does not fit" : ""
        }`,
    },
    {
      kind: "rect",
      at: [x + 13, y + 34],
      size: [inner, 14],
      ink: "line",
      radius: 2,
    },
    ...bars,
    ...held === 0 ? [] : many || experts.length === 0
      ? [{
        kind: "text" as const,
        at: [x + 13, y + 70] as const,
        size: 12,
        text: view.plan.ranks > FEW || experts.length === 0
          ? `${held} ${held === 1 ? "expert" : "experts"} of a layer`
          : shortened(
            `experts ${heldText(view.plan, rank)}`,
            Math.floor(inner / CHARACTER),
          ),
        title: `experts ${heldText(view.plan, rank)}`,
      }]
      : experts.flatMap((expert, i) =>
        chip(`${expert}`, [x + 13 + i * 32, y + 56])
      ),
  ];
}

/** Width of a character on a card, in pixels. */
const CHARACTER = 6.6;

/** Draws an expert's number in a frame. */
function chip(text: string, [x, y]: readonly [number, number]): Shape[] {
  return [
    {
      kind: "rect",
      at: [x, y],
      size: [28, 19],
      ink: "card",
      border: "experts" as Ink,
      radius: 5,
      title: `expert ${text}`,
    },
    {
      kind: "text",
      at: [x + 14, y + 14],
      anchor: "middle",
      size: 12,
      text,
      bold: true,
      ink: "ink",
    },
  ];
}

/** Draws the mesh as a grid. Rows are the last axis, wrapped if it is long. */
function gridShapes(
  { plan, summary }: PlanView,
  { classes, top }: {
    readonly classes: readonly RankClass[];
    readonly top: number;
  },
): { shapes: Shape[]; height: number } {
  const last = plan.mesh.at(-1)?.size ?? 1;
  const columns = last > 64 ? 32 : Math.max(last, Math.min(32, plan.ranks));
  const size = Math.min(34, (WIDTH - 2) / columns);
  const rows = Math.ceil(plan.ranks / columns);
  const max = Math.max(...summary.ranks.map(({ bytes }) => bytes.total));
  const shapes = classes.flatMap((of, rank): Shape[] => {
    const x = (rank % columns) * size;
    const y = top + 22 + Math.floor(rank / columns) * size;
    const experts = heldText(plan, rank);
    return [{
      kind: "rect",
      at: [x + 1, y + 1],
      size: [size - 2, size - 2],
      ink: "weights",
      radius: 3,
      opacity: Number((0.5 + 0.4 * of.bytes.total / max).toFixed(2)),
      title: `rank ${rank} (${coordinatesText(plan, rank)})\n${
        sizeText(of.bytes.total)
      }${experts === "" ? "" : `\nexperts ${experts}`}`,
    }, {
      kind: "text",
      at: [x + size / 2, y + size / 2 + 4],
      size: 10,
      anchor: "middle",
      text: `${rank}`,
      ink: "deep",
    }];
  });
  return {
    shapes: [
      {
        kind: "text",
        at: [0, top + 12],
        size: 12.5,
        ink: "soft",
        text: `The mesh, ${
          meshText(summary)
        }, rank by rank: the fuller, the stronger the color`,
      },
      ...shapes,
    ],
    height: rows * size + 2 * GAP + 24,
  };
}
