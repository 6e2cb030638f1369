/** Plots of results as SVG: a group of horizontal bars for each piece of work. */

import { element, label, svg } from "../cli/plots/svg.ts";
import { rateIn } from "./measure.ts";
import type { Result } from "./results.ts";

const ROW = 20, LEFT = 250, WIDTH = 360, RIGHT = 120;

/** Draws a bar for the rate of each side. The fastest one of a piece of work has the full width. */
export function barsSvg(result: Result): string {
  let y = 24;
  const parts = [label(`${result.machine}, ${result.adapter}`, [8, y])];
  for (const work of result.works) {
    y += 1.5 * ROW;
    parts.push(label(work.work, [8, y], { "font-weight": "bold" }));
    const rates = Object.entries(work.sides).map(([side, { median }]) => ({
      side,
      rate: rateIn(work, median),
    }));
    const most = Math.max(...rates.map(({ rate }) => rate));
    for (const [i, { side, rate }] of rates.entries()) {
      y += ROW;
      const width = Math.max(1, Math.round(WIDTH * rate / most));
      const digits = rate >= 100 ? 0 : rate >= 10 ? 1 : 2;
      const written = `${rate.toFixed(digits)} ${work.unit}`;
      parts.push(
        label(side, [LEFT - 8, y], { "text-anchor": "end" }),
        element("rect", {
          x: LEFT,
          y: y - 12,
          width,
          height: 14,
          fill: i === 0 ? "#1a6faf" : "#b9c4cf",
        }),
        label(written, [LEFT + width + 6, y]),
      );
    }
  }
  return svg({ width: LEFT + WIDTH + RIGHT, height: y + ROW }, parts);
}
