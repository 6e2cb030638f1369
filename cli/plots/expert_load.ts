/** Heat map in SVG of each expert's load in each layer over the steps of a training. */

import { bottomAxis, element, label, placeAt, type Scale, svg } from "./svg.ts";
import type { StepRecord } from "./record.ts";

const WIDTH = 720, LEFT = 96, RIGHT = 16, TOP = 52, BOTTOM = 48, GAP = 6;

/** Height of the expert numbers. */
const NUMBER = 9;

/** Maximum number of columns. Each shows the mean of several steps. */
const COLUMNS = 60;

/** Loads of this many times a fair share or more have the same colour. */
const MOST = 3;

/**
 * Draws one row per expert, grouped by layer. White is a fair share, blue is less, and red is more. Undefined without
 * experts.
 */
export function expertLoad(
  records: readonly StepRecord[],
): string | undefined {
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
    end: WIDTH - RIGHT,
  };
  const width = (x.end - x.start) / columns;
  const parts: string[] = [];
  for (let layer = 0; layer < layers; layer++) {
    const top = TOP + layer * (experts * row + GAP);
    const middle = top + experts * row / 2 + 4;
    parts.push(
      label(`layer ${layer}`, [LEFT - 28, middle], { "text-anchor": "end" }),
    );
    parts.push(...expertNumbers(experts, row, top));
    for (let expert = 0; expert < experts; expert++) {
      for (let column = 0; column < columns; column++) {
        const some = records.slice(column * each, (column + 1) * each);
        const share = some.reduce(
          (sum, { expertLoad }) => sum + (expertLoad[layer]?.[expert] ?? 0),
          0,
        ) / some.length;
        parts.push(element("rect", {
          x: Number((LEFT + column * width).toFixed(1)),
          y: top + expert * row,
          // Slightly wider, so that no gap is visible between two cells.
          width: Number((width + 0.3).toFixed(1)),
          height: row,
          fill: colour(share * experts),
        }));
      }
    }
  }
  return svg({ width: WIDTH, height: bottom + BOTTOM }, [
    label("Load of each expert, as a multiple of a fair share", [LEFT, 18]),
    ...legend(),
    ...parts,
    ...bottomAxis(x, bottom, "step"),
  ]);
}

function legend(): string[] {
  const steps = 60;
  const scale: Scale = {
    from: 0,
    to: MOST,
    start: WIDTH - 260,
    end: WIDTH - 60,
  };
  const bar = Array.from({ length: steps }, (_, i) => {
    const value = MOST * i / (steps - 1);
    return element("rect", {
      x: placeAt(scale, value),
      y: 8,
      width: 4,
      height: 12,
      fill: colour(value),
    });
  });
  const numbers = Array.from({ length: MOST + 1 }, (_, value) =>
    label(
      value === MOST ? `${value} or more` : String(value),
      [placeAt(scale, value), 33],
      { "text-anchor": "middle" },
    ));
  return [...bar, ...numbers];
}

/** Draws the numbers of experts at their rows, as far as there is room. */
function expertNumbers(experts: number, row: number, top: number): string[] {
  const each = Math.ceil(NUMBER / row);
  return Array.from({ length: Math.ceil(experts / each) }, (_, i) =>
    label(
      String(i * each),
      [LEFT - 6, top + (i * each + 0.5) * row + 3],
      { "text-anchor": "end", "font-size": NUMBER },
    ));
}

/** Returns a colour from blue (0) over white (1) to red. */
function colour(share: number): string {
  const [r, g, b] = share <= 1
    ? mixed([33, 102, 172], [247, 247, 247], share)
    : mixed(
      [247, 247, 247],
      [178, 24, 43],
      Math.min(1, (share - 1) / (MOST - 1)),
    );
  return `#${[r, g, b].map((n) => n!.toString(16).padStart(2, "0")).join("")}`;
}

function mixed(
  from: readonly number[],
  to: readonly number[],
  share: number,
): number[] {
  return from.map((n, i) => Math.round(n + share * (to[i]! - n)));
}
