/** Pictures of the expert load: by layer at one step, and over the steps of a training. */

import { bottomAxis, coordinateAt, type Scale, text } from "./chart.ts";
import type { Ink } from "../palette.ts";
import type { Figure, Shape } from "./figure.ts";

/** Shares of the choices by layer and expert. */
export type Load = readonly (readonly number[])[];

/** Loads of this many times a fair share or more have the same color. */
const MAX = 3;

/** Returns the color of a multiple of a fair share: blue below, white at, orange above a fair share. */
function colorOf(
  share: number,
): { readonly ink: Ink; readonly opacity: number } {
  const far = share <= 1 ? 1 - share : Math.min(1, (share - 1) / (MAX - 1));
  return {
    ink: share <= 1 ? "attention" : "combine",
    opacity: Number(far.toFixed(2)),
  };
}

function legend(right: number): Shape[] {
  const steps = 60;
  const scale: Scale = {
    from: 0,
    to: MAX,
    start: right - 230,
    end: right - 30,
  };
  return [
    ...Array.from({ length: steps }, (_, i): Shape => {
      const value = MAX * i / (steps - 1);
      return {
        kind: "rect",
        at: [coordinateAt(scale, value), 8],
        size: [(scale.end - scale.start) / (steps - 1), 12],
        ...colorOf(value),
      };
    }),
    ...Array.from({ length: MAX + 1 }, (_, value) =>
      text(
        value === MAX ? `${value} or more` : String(value),
        [coordinateAt(scale, value), 33],
        "middle",
      )),
  ];
}

const TITLE = "Load of each expert, as a multiple of a fair share";

/** Pixels to the left of the columns, and above the rows. */
const LEFT = 96, TOP = 52;

/** Draws one row per layer and one column per expert. */
export function loadPicture(load: Load, width: number): Figure {
  const experts = Math.max(...load.map((layer) => layer.length));
  const cell = Math.min(60, (width - LEFT - 16) / experts);
  const height = 22;
  return {
    size: [width, TOP + 14 + load.length * height],
    label: `the load of ${experts} experts in ${load.length} layers`,
    shapes: [
      text(TITLE, [LEFT, 18], "start"),
      ...legend(width),
      ...load.flatMap((layer, l): Shape[] => [
        text(`layer ${l}`, [LEFT - 8, TOP + l * height + 15], "end"),
        ...layer.map((share, e): Shape => ({
          kind: "rect",
          radius: 3,
          at: [LEFT + e * cell + 1, TOP + l * height + 1] as const,
          size: [cell - 2, height - 2] as const,
          ...colorOf(share * layer.length),
          title: `expert ${e} of layer ${l}: ${
            (share * layer.length).toFixed(2)
          } of a fair share`,
        })),
      ]),
    ],
  };
}

/** Maximum number of columns. Each shows the mean of several steps. */
const COLUMNS = 60;

/** Gap between layers, and height of the expert numbers, in pixels. */
const GAP = 6, NUMBER = 9;

/** Draws one row per expert, grouped by layer, over the steps. Returns undefined without experts. */
export function loadOverSteps(
  records: readonly { readonly step: number; readonly expertLoad: Load }[],
  width: number,
): Figure | undefined {
  const layers = records[0]?.expertLoad.length ?? 0;
  const experts = records[0]?.expertLoad[0]?.length ?? 0;
  if (layers * experts === 0) return undefined;
  const each = Math.ceil(records.length / COLUMNS);
  const columns = Math.ceil(records.length / each);
  const row = Math.max(2, Math.min(14, Math.floor(480 / (layers * experts))));
  const bottom = TOP + layers * (experts * row + GAP) - GAP;
  const x: Scale = {
    from: records[0]!.step - 1,
    to: records.at(-1)!.step,
    start: LEFT,
    end: width - 16,
  };
  const wide = (x.end - x.start) / columns;
  const means = Array.from({ length: columns }, (_, column) => {
    const some = records.slice(column * each, (column + 1) * each);
    return (layer: number, expert: number) =>
      some.reduce(
        (sum, { expertLoad }) => sum + (expertLoad[layer]?.[expert] ?? 0),
        0,
      ) / some.length;
  });
  const rows = Array.from({ length: layers }, (_, layer): Shape[] => {
    const top = TOP + layer * (experts * row + GAP);
    return [
      text(`layer ${layer}`, [LEFT - 28, top + experts * row / 2 + 4], "end"),
      ...expertNumbers(experts, row, top),
      ...Array.from(
        { length: experts },
        (_, expert) =>
          means.map((mean, column): Shape => ({
            kind: "rect",
            at: [LEFT + column * wide, top + expert * row],
            size: [wide, row],
            ...colorOf(mean(layer, expert) * experts),
          })),
      ).flat(),
    ];
  });
  return {
    size: [width, bottom + 48],
    label: `the load of ${experts} experts in ${layers} layers over steps`,
    shapes: [
      text(TITLE, [LEFT, 18], "start"),
      ...legend(width),
      ...rows.flat(),
      ...bottomAxis(x, { y: bottom, name: "step" }),
    ],
  };
}

/** Draws the numbers of experts at their rows, as far as there is room. */
function expertNumbers(experts: number, row: number, top: number): Shape[] {
  const each = Math.ceil(NUMBER / row);
  return Array.from({ length: Math.ceil(experts / each) }, (_, i): Shape => ({
    kind: "text",
    text: String(i * each),
    at: [LEFT - 6, top + (i * each + 0.5) * row + 3],
    anchor: "end",
    size: NUMBER,
    ink: "soft",
  }));
}
