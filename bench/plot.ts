/** Plots of results as SVG: a group of horizontal bars for each piece of work. */

import {
  type Figure,
  figureSvg,
  LIGHT,
  type Shape,
  type Text,
} from "../view/mod.ts";
import { rateIn } from "./measure.ts";
import type { Result } from "./results.ts";

const ROW = 20, LEFT = 250, WIDTH = 360, RIGHT = 120;

/** Draws a bar for the rate of each side. The fastest one of a piece of work has the full width. */
export function barsSvg(result: Result): string {
  let y = 24;
  const shapes: Shape[] = [
    words(`${result.machine}, ${result.adapter}`, [8, y]),
  ];
  for (const work of result.works) {
    y += 1.5 * ROW;
    shapes.push({ ...words(work.work, [8, y]), bold: true });
    const rates = Object.entries(work.sides).map(([side, { median }]) => ({
      side,
      rate: rateIn(work, median),
    }));
    const max = Math.max(...rates.map(({ rate }) => rate));
    for (const [i, { side, rate }] of rates.entries()) {
      y += ROW;
      const width = Math.max(1, Math.round(WIDTH * rate / max));
      const digits = rate >= 100 ? 0 : rate >= 10 ? 1 : 2;
      shapes.push(
        { ...words(side, [LEFT - 8, y]), anchor: "end" },
        {
          kind: "rect",
          at: [LEFT, y - 12],
          size: [width, 14],
          ink: i === 0 ? "attention" : "staging",
        },
        words(`${rate.toFixed(digits)} ${work.unit}`, [LEFT + width + 6, y]),
      );
    }
  }
  const figure: Figure = {
    size: [LEFT + WIDTH + RIGHT, y + ROW],
    label: `rates on ${result.machine}, ${result.adapter}`,
    shapes,
  };
  return `${figureSvg(figure, { palette: LIGHT })}\n`;
}

function words(text: string, at: readonly [number, number]): Text {
  return { kind: "text", text, at };
}
