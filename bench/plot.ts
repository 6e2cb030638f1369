/** Plots of results: a group of horizontal bars for each piece of work, as SVG. */

import type { Result } from "./results.ts";

const ROW = 20, LEFT = 250, WIDTH = 360, RIGHT = 120;

/** Bars as long as the rate of each side, the fastest of a piece of work filling the width. */
export function barsSvg(result: Result): string {
  const parts: string[] = [];
  let y = 24;
  const text = (x: number, at: number, content: string, more = "") =>
    parts.push(
      `<text x="${x}" y="${at}"${more}>${escaped(content)}</text>`,
    );
  text(8, y, `${result.machine}, ${result.adapter}`);
  for (const work of result.works) {
    y += 1.5 * ROW;
    text(8, y, work.work, ' font-weight="bold"');
    const rates = Object.entries(work.sides).map(([side, { median }]) => ({
      side,
      rate: work.unit === "tokens/s"
        ? work.amount / median * 1e3
        : work.amount / median / 1e6,
    }));
    const most = Math.max(...rates.map(({ rate }) => rate));
    for (const [i, { side, rate }] of rates.entries()) {
      y += ROW;
      const length = Math.max(1, Math.round(WIDTH * rate / most));
      text(LEFT - 8, y, side, ' text-anchor="end"');
      parts.push(
        `<rect x="${LEFT}" y="${y - 12}" width="${length}" height="14" fill="${
          i === 0 ? "#1a6faf" : "#b9c4cf"
        }"/>`,
      );
      const digits = rate >= 100 ? 0 : rate >= 10 ? 1 : 2;
      text(LEFT + length + 6, y, `${rate.toFixed(digits)} ${work.unit}`);
    }
  }
  const [width, height] = [LEFT + WIDTH + RIGHT, y + ROW];
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" font-family="sans-serif" font-size="12">`,
    `<rect width="${width}" height="${height}" fill="#fff"/>`,
    ...parts,
    "</svg>",
    "",
  ].join("\n");
}

function escaped(content: string): string {
  return content.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
}
