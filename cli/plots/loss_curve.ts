/** The loss over the steps of a training, as SVG. */

import {
  bottomAxis,
  element,
  label,
  placeAt,
  polyline,
  type Scale,
  svg,
  ticks,
} from "./svg.ts";
import type { StepRecord } from "./record.ts";

const WIDTH = 720, HEIGHT = 400;
const LEFT = 56, RIGHT = 16, TOP = 28, BOTTOM = 48;

/** Maximum points of a line: more than a screen can show. */
const POINTS = 600;

const TRAINED = "#9dbbd8", MEAN = "#1a6faf", VALIDATED = "#c2410c";

/** Draws every step's loss, its running mean, and the evaluation loss. */
export function lossCurve(records: readonly StepRecord[]): string {
  const losses = records.map((record): Point => [record.step, record.ceLoss]);
  const validated = records.flatMap((record): Point[] =>
    record.validationLoss === null ? [] : [[record.step, record.validationLoss]]
  );
  const all = [...losses, ...validated].map(([, loss]) => loss);
  const x: Scale = {
    from: 0,
    to: records.at(-1)?.step ?? 1,
    start: LEFT,
    end: WIDTH - RIGHT,
  };
  const y: Scale = {
    from: Math.floor(least(all)),
    to: Math.ceil(most(all)),
    start: HEIGHT - BOTTOM,
    end: TOP,
  };
  const drawn = (points: readonly Point[]) =>
    thinned(points).map(([step, loss]): Point => [
      placeAt(x, step),
      placeAt(y, loss),
    ]);
  return svg({ width: WIDTH, height: HEIGHT }, [
    ...leftAxis(y),
    ...bottomAxis(x, HEIGHT - BOTTOM, "step"),
    polyline(drawn(losses), { stroke: TRAINED }),
    polyline(drawn(smooth(losses)), { stroke: MEAN, "stroke-width": 1.5 }),
    polyline(drawn(validated), { stroke: VALIDATED, "stroke-width": 1.5 }),
    ...drawn(validated).map(([cx, cy]) =>
      element("circle", { cx, cy, r: 3, fill: VALIDATED })
    ),
    label("Cross-entropy loss, nats per token", [LEFT, 18]),
    ...legend(validated.at(-1), windowOf(losses)),
  ]);
}

type Point = readonly [step: number, loss: number];

function leftAxis(y: Scale): string[] {
  return ticks(y.from, y.to, 8).flatMap((value) => {
    const at = placeAt(y, value);
    return [
      element("line", {
        x1: LEFT,
        x2: WIDTH - RIGHT,
        y1: at,
        y2: at,
        stroke: "#ddd",
      }),
      label(String(value), [LEFT - 8, at + 4], { "text-anchor": "end" }),
    ];
  });
}

function legend(last: Point | undefined, window: number): string[] {
  const entries = [
    [TRAINED, "a step"],
    [MEAN, `exponential mean of ${Number(window.toFixed(1))} steps`],
    ...last === undefined
      ? []
      : [[VALIDATED, `validation, at last ${last[1].toFixed(3)}`] as const],
  ] as const;
  return entries.flatMap(([stroke, text], i) => {
    const [x, y] = [WIDTH - 220, TOP + 14 + 18 * i];
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

/** Number of steps in the running mean: the inverse of the newest value's weight. */
function windowOf(points: readonly Point[]): number {
  return Math.max(1, Math.min(25, points.length / 20));
}

/** Returns the running mean at each point, with decreasing weights of older values. */
function smooth(points: readonly Point[]): Point[] {
  const decay = 1 - 1 / windowOf(points);
  let [sum, weight] = [0, 0];
  return points.map(([step, loss]) => {
    sum = decay * sum + loss;
    weight = decay * weight + 1;
    return [step, sum / weight];
  });
}

/** Reduces the points: each result is the mean of several neighbours. */
function thinned(points: readonly Point[]): readonly Point[] {
  const each = Math.ceil(points.length / POINTS);
  if (each <= 1) return points;
  return Array.from({ length: Math.ceil(points.length / each) }, (_, i) => {
    const some = points.slice(i * each, (i + 1) * each);
    const mean = (part: 0 | 1) =>
      some.reduce((sum, point) => sum + point[part], 0) / some.length;
    return [mean(0), mean(1)];
  });
}

function least(values: readonly number[]): number {
  return values.reduce((a, b) => Math.min(a, b), Infinity);
}

function most(values: readonly number[]): number {
  return values.reduce((a, b) => Math.max(a, b), -Infinity);
}
