/** Picture of speed over devices, both in powers of two: how expert parallelism and replicas scale. */

import {
  bottomAxis,
  coordinateAt,
  dot,
  leftAxis,
  lineLegend,
  type LineStyle,
  polyline,
  type Scale,
  text,
} from "./chart.ts";
import type { Figure, Point } from "./figure.ts";

const WIDTH = 720, HEIGHT = 420;
const LEFT = 72, RIGHT = 16, TOP = 44, BOTTOM = 48;

const BEST: LineStyle = { ink: "attention" };
const SINGLE: LineStyle = { ink: "combine" };
const EVEN: LineStyle = { ink: "dense", opacity: 0.5 };

/** Tokens per second on some devices: of the best configuration, and of all devices as one replica. */
export interface SpeedPoint {
  readonly devices: number;
  readonly best: number | undefined;
  readonly single: number | undefined;
}

/** Draws the best configuration, all devices as one replica, and linear scaling of the first one that fits. */
export function speedPicture(
  curve: readonly SpeedPoint[],
  title: string,
): Figure {
  const points = (of: "best" | "single") =>
    curve.flatMap((point): Point[] => {
      const speed = point[of] ?? 0;
      return speed > 0 ? [[Math.log2(point.devices), Math.log2(speed)]] : [];
    });
  const [best, single] = [points("best"), points("single")];
  const [first] = best;
  const last = Math.log2(curve.at(-1)?.devices ?? 1);
  const even: readonly Point[] = first
    ? [first, [last, first[1] + last - first[0]]]
    : [];
  const speeds = [...best, ...single, ...even].map(([, speed]) => speed);
  const x: Scale = { from: 0, to: last, start: LEFT, end: WIDTH - RIGHT };
  const y: Scale = {
    from: speeds.length === 0 ? 0 : Math.floor(Math.min(...speeds)),
    to: speeds.length === 0 ? 1 : Math.ceil(Math.max(...speeds)),
    start: HEIGHT - BOTTOM,
    end: TOP,
  };
  const drawn = (line: readonly Point[]) =>
    line.map(([devices, speed]): Point => [
      coordinateAt(x, devices),
      coordinateAt(y, speed),
    ]);
  const powers = (scale: Scale) => {
    const step = Math.max(1, Math.ceil((scale.to - scale.from) / 12));
    const count = Math.floor((scale.to - scale.from) / step) + 1;
    return {
      values: Array.from({ length: count }, (_, i) => scale.from + i * step),
      textOf: (power: number) => numberText(2 ** power),
    };
  };
  return {
    size: [WIDTH, HEIGHT],
    label: `tokens/s over devices: ${title}`,
    shapes: [
      text(title, [LEFT, 18], "start"),
      ...leftAxis(y, [LEFT, WIDTH - RIGHT], powers(y)),
      text("tokens/s", [8, TOP - 12], "start"),
      ...bottomAxis(x, {
        y: HEIGHT - BOTTOM,
        name: "devices",
        ...powers(x),
      }),
      ...polyline(drawn(even), EVEN),
      ...polyline(drawn(single), SINGLE),
      ...polyline(drawn(best), BEST),
      ...drawn(single).map((at) => dot(at, "combine")),
      ...drawn(best).map((at) => dot(at, "attention")),
      ...lineLegend([
        [BEST, "best mesh and replicas"],
        [SINGLE, "all devices as one replica"],
        [EVEN, "as fast for each device as the fewest"],
      ], [LEFT + 16, TOP + 14]),
    ],
  };
}

function numberText(value: number): string {
  return value >= 1e6
    ? `${Number((value / 1e6).toPrecision(3))} M`
    : value >= 1e4
    ? `${Number((value / 1e3).toPrecision(3))} k`
    : `${value >= 1 ? Math.round(value) : Number(value.toPrecision(3))}`;
}
