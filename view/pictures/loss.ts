/** Picture of a training: the loss by step, its running mean, and the validation loss. */

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
import type { LossPoint } from "../live.ts";
import type { Figure, Point } from "./figure.ts";

const LEFT = 64, RIGHT = 16, TOP = 28, BOTTOM = 48;

/** Maximum points of a line: more than a screen can show. */
const POINTS = 600;

const TRAINED: LineStyle = { ink: "attention", width: 1, opacity: 0.4 };
const MEAN: LineStyle = { ink: "attention" };
const VALIDATED: LineStyle = { ink: "combine" };

/** Losses by step, in nats per token. */
export interface Losses {
  readonly losses: readonly LossPoint[];
  readonly validations: readonly LossPoint[];
  /** Name of the loss. */
  readonly name: string;
}

/** Draws the loss by step. Losses that are not finite are omitted. */
export function lossPicture(
  { losses, validations, name }: Losses,
  [width, height]: Point,
): Figure {
  const trained = losses.filter(isFinitePoint);
  const validated = validations.filter(isFinitePoint);
  const all = [...trained, ...validated].map(([, loss]) => loss);
  const first = losses[0]?.[0] ?? 0;
  const last = Math.max(losses.at(-1)?.[0] ?? 1, first + 1);
  const x: Scale = {
    from: first,
    to: last,
    start: LEFT,
    end: width - RIGHT,
  };
  const y: Scale = {
    from: all.reduce((a, b) => Math.min(a, b), Infinity),
    to: all.reduce((a, b) => Math.max(a, b), -Infinity),
    start: height - BOTTOM,
    end: TOP,
  };
  const drawn = (points: readonly LossPoint[]) =>
    thinned(points).map(([step, loss]): Point => [
      coordinateAt(x, step),
      coordinateAt(y, loss),
    ]);
  const end = validated.at(-1);
  return {
    size: [width, height],
    label: `${name} of steps ${first} to ${last}`,
    shapes: [
      ...all.length === 0 ? [] : leftAxis(y, [LEFT, width - RIGHT]),
      ...bottomAxis(x, { y: height - BOTTOM, name: "step" }),
      ...polyline(drawn(trained), TRAINED),
      ...polyline(drawn(smooth(trained)), MEAN),
      ...polyline(drawn(validated), VALIDATED),
      ...validated.map(([step, loss]) =>
        dot(
          [coordinateAt(x, step), coordinateAt(y, loss)],
          "combine",
          `step ${step}: ${loss.toFixed(4)} in validation`,
        )
      ),
      text(name, [LEFT, 18], "start"),
      ...lineLegend([
        [TRAINED, "a step"],
        [
          MEAN,
          `exponential mean of ${Number(windowOf(trained).toFixed(1))} steps`,
        ],
        ...end
          ? [[VALIDATED, `validation, at last ${end[1].toFixed(3)}`] as const]
          : [],
      ], [width - 220, TOP + 14]),
    ],
  };
}

function isFinitePoint([, loss]: LossPoint): boolean {
  return Number.isFinite(loss);
}

/** Number of steps in the running mean: the inverse of the newest value's weight. */
function windowOf(points: readonly LossPoint[]): number {
  return Math.max(1, Math.min(25, points.length / 20));
}

/** Returns the running mean at each point, with decreasing weights of older values. */
function smooth(points: readonly LossPoint[]): LossPoint[] {
  const decay = 1 - 1 / windowOf(points);
  let [sum, weight] = [0, 0];
  return points.map(([step, loss]) => {
    sum = decay * sum + loss;
    weight = decay * weight + 1;
    return [step, sum / weight];
  });
}

/** Reduces the points: each result is the mean of several neighbors. */
function thinned(points: readonly LossPoint[]): readonly LossPoint[] {
  const each = Math.ceil(points.length / POINTS);
  if (each <= 1) return points;
  return Array.from({ length: Math.ceil(points.length / each) }, (_, i) => {
    const some = points.slice(i * each, (i + 1) * each);
    const mean = (part: 0 | 1) =>
      some.reduce((sum, point) => sum + point[part], 0) / some.length;
    return [mean(0), mean(1)];
  });
}
