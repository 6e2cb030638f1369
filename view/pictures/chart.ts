/** Parts of charts: linear scales, their ticks, grids and lines, as shapes of a figure. */

import type { Ink } from "../palette.ts";
import type { Point, Shape } from "./figure.ts";

/** A range of values along an axis, and the pixels of its ends. */
export interface Scale {
  readonly from: number;
  readonly to: number;
  readonly start: number;
  readonly end: number;
}

/** The pixel of a value. */
export function coordinateAt(scale: Scale, value: number): number {
  const share = (value - scale.from) / (scale.to - scale.from || 1);
  return scale.start + share * (scale.end - scale.start);
}

/** Values from `from` to `to` at a distance of 1, 2 or 5 times a power of ten, about `count` of them. */
export function ticks(from: number, to: number, count: number): number[] {
  const rough = (to - from) / count;
  if (!(rough > 0)) return [from];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power *
    ([1, 2, 5].find((factor) => factor * power >= rough) ?? 10);
  const found: number[] = [];
  for (let i = Math.ceil(from / step); i * step <= to; i++) {
    found.push(Number((i * step).toPrecision(12)));
  }
  return found;
}

/** Options of an axis. */
export interface AxisOptions {
  /** Labelled values. Default: about eight round ones. */
  readonly values?: readonly number[];
  /** Label of a value. Default: the value. */
  readonly textOf?: (value: number) => string;
}

/** Horizontal lines at values from pixel to pixel, with the values to the left of them. */
export function leftAxis(
  scale: Scale,
  [left, right]: Point,
  { values = ticks(scale.from, scale.to, 8), textOf = String }: AxisOptions =
    {},
): Shape[] {
  return values.flatMap((value): Shape[] => {
    const y = coordinateAt(scale, value);
    return [
      {
        kind: "path",
        ink: "line",
        width: 1,
        d: `M${fixed(left)} ${fixed(y)} H${fixed(right)}`,
      },
      text(textOf(value), [left - 8, y + 4], "end"),
    ];
  });
}

/** Marks at values below a chart, the values below them, and a name of the axis. */
export function bottomAxis(
  scale: Scale,
  { y, name, values = ticks(scale.from, scale.to, 8), textOf = String }:
    & AxisOptions
    & { readonly y: number; readonly name: string },
): Shape[] {
  return [
    ...values.flatMap((value): Shape[] => {
      const x = coordinateAt(scale, value);
      return [
        {
          kind: "path",
          ink: "line",
          width: 1,
          d: `M${fixed(x)} ${fixed(y)} V${fixed(y + 4)}`,
        },
        text(textOf(value), [x, y + 17], "middle"),
      ];
    }),
    text(name, [(scale.start + scale.end) / 2, y + 34], "middle"),
  ];
}

/** How a line is drawn. */
export interface LineStyle {
  readonly ink: Ink;
  readonly width?: number;
  readonly opacity?: number;
}

/** A line through points, in pixels; nothing where there are none. */
export function polyline(
  points: readonly Point[],
  { ink, width = 1.5, opacity = 1 }: LineStyle,
): Shape[] {
  if (points.length === 0) return [];
  const d = points.map(([x, y]) => `${fixed(x)} ${fixed(y)}`).join(" L");
  return [{ kind: "path", ink, width, opacity, d: `M${d}` }];
}

/** A dot with a title. */
export function dot([x, y]: Point, ink: Ink, title?: string): Shape {
  return {
    kind: "rect",
    ink,
    radius: 3,
    at: [x - 3, y - 3],
    size: [6, 6],
    title,
  };
}

/** The legend of lines, from a point down. */
export function lineLegend(
  entries: readonly (readonly [style: LineStyle, text: string])[],
  [x, y]: Point,
): Shape[] {
  return entries.flatMap(([style, words], i): Shape[] => [
    ...polyline([[x, y + 18 * i - 4], [x + 22, y + 18 * i - 4]], {
      ...style,
      width: 2,
    }),
    text(words, [x + 28, y + 18 * i], "start"),
  ]);
}

/** A text of an axis or a legend. */
export function text(
  words: string,
  at: Point,
  anchor: "start" | "middle" | "end",
): Shape {
  return { kind: "text", text: words, at, anchor, size: 11, ink: "soft" };
}

function fixed(n: number): string {
  return String(Number(n.toFixed(1)));
}
