/**
 * Speed over the number of devices, both in powers of two, as SVG. It shows the effect of expert parallelism and
 * replicas.
 */

import type { CurvePoint } from "../../engine/mod.ts";
import { element, label, placeAt, polyline, type Scale, svg } from "./svg.ts";

const WIDTH = 720, HEIGHT = 420;
const LEFT = 72, RIGHT = 16, TOP = 36, BOTTOM = 48;

const BEST = "#1a6faf", SINGLE = "#c2410c", EVEN = "#bbb";

/** A point: the logarithms of devices and of tokens per second. */
type Point = readonly [devices: number, speed: number];

/** Draws the best configuration, all devices as one replica, and linear scaling of the first one that fits. */
export function speedCurve(
  curve: readonly CurvePoint[],
  title: string,
): string {
  const points = (of: "best" | "single") =>
    curve.flatMap((point): Point[] => {
      const found = point[of];
      return found && found.tokensPerSecond > 0
        ? [[Math.log2(point.devices), Math.log2(found.tokensPerSecond)]]
        : [];
    });
  const [best, single] = [points("best"), points("single")];
  const [first] = best;
  const last = Math.log2(curve.at(-1)?.devices ?? 1);
  const even = first
    ? [first, [last, first[1] + last - first[0]] as const]
    : [];
  const speeds = [...best, ...single, ...even].map(([, speed]) => speed);
  const x: Scale = {
    from: 0,
    to: last,
    start: LEFT,
    end: WIDTH - RIGHT,
  };
  const y: Scale = {
    from: Math.floor(least(speeds)),
    to: Math.ceil(most(speeds)),
    start: HEIGHT - BOTTOM,
    end: TOP,
  };
  const drawn = (line: readonly Point[]) =>
    line.map(([devices, speed]): Point => [
      placeAt(x, devices),
      placeAt(y, speed),
    ]);
  const dots = (line: readonly Point[], fill: string) =>
    drawn(line).map(([cx, cy]) => element("circle", { cx, cy, r: 3, fill }));
  return svg({ width: WIDTH, height: HEIGHT }, [
    label(title, [LEFT, 20]),
    ...axis(x, "bottom"),
    ...axis(y, "left"),
    polyline(drawn(even), { stroke: EVEN, "stroke-dasharray": "4 4" }),
    polyline(drawn(single), { stroke: SINGLE, "stroke-width": 1.5 }),
    polyline(drawn(best), { stroke: BEST, "stroke-width": 1.5 }),
    ...dots(single, SINGLE),
    ...dots(best, BEST),
    ...legend([
      [BEST, "best mesh and replicas"],
      [SINGLE, "all devices as one replica"],
      [EVEN, "as fast for each device as the fewest"],
    ]),
  ]);
}

/** Draws lines and numbers at powers of two, at most about ten. */
function axis(scale: Scale, side: "bottom" | "left"): string[] {
  const step = Math.max(1, Math.ceil((scale.to - scale.from) / 12));
  const count = Math.floor((scale.to - scale.from) / step) + 1;
  return Array.from({ length: count }, (_, i) => scale.from + i * step)
    .flatMap((power) => {
      const at = placeAt(scale, power);
      const text = numberText(2 ** power);
      const line = side === "left"
        ? { x1: LEFT, x2: WIDTH - RIGHT, y1: at, y2: at }
        : { x1: at, x2: at, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM + 4 };
      const where = side === "left"
        ? [LEFT - 8, at + 4] as const
        : [at, HEIGHT - BOTTOM + 18] as const;
      const anchor = side === "left" ? "end" : "middle";
      return [
        element("line", { ...line, stroke: "#ddd" }),
        label(text, where, { "text-anchor": anchor }),
      ];
    }).concat(
      side === "left"
        ? [label("tokens/s", [8, TOP - 8])]
        : [label("devices", [WIDTH / 2, HEIGHT - 8])],
    );
}

function numberText(value: number): string {
  return value >= 1e6
    ? `${Number((value / 1e6).toPrecision(3))} M`
    : value >= 1e4
    ? `${Number((value / 1e3).toPrecision(3))} k`
    : `${value >= 1 ? Math.round(value) : Number(value.toPrecision(3))}`;
}

function legend(
  entries: readonly (readonly [stroke: string, text: string])[],
): string[] {
  return entries.flatMap(([stroke, text], i) => {
    const [x, y] = [LEFT + 16, TOP + 14 + 18 * i];
    return [
      element("line", {
        x1: x,
        x2: x + 22,
        y1: y - 4,
        y2: y - 4,
        stroke,
        "stroke-width": 2,
      }),
      label(text, [x + 28, y]),
    ];
  });
}

function least(values: readonly number[]): number {
  return values.reduce((a, b) => Math.min(a, b), Infinity);
}

function most(values: readonly number[]): number {
  return values.reduce((a, b) => Math.max(a, b), -Infinity);
}
