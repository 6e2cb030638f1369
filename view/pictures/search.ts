/** The picture of a search: speed over step time, with the Pareto front among all configurations. */

import { rateText, timeText } from "../../spec/time_text.ts";
import { sizeText } from "../../spec/size_text.ts";
import type { Figure, Shape } from "./figure.ts";
import {
  type FoundConfiguration,
  type SearchResult,
  strategyText,
} from "../search_result.ts";

const WIDTH = 1180, HEIGHT = 440;
const LEFT = 84, RIGHT = 24, TOP = 92, BOTTOM = 62;
/** Radius of the dot with the maximum memory, and of a dot without memory. */
const MAX_RADIUS = 11, MIN_RADIUS = 4;

/** Draws configurations as dots: step time to the right, speed upwards, and memory as the size of a dot. */
export function searchPicture({ found, pareto }: SearchResult): Figure {
  const slower = found.slice(1)
    .filter((one) => !pareto.some((other) => isSame(one, other)));
  const all = [...slower, ...pareto];
  const x = logScale(all.map(({ seconds }) => seconds), LEFT, WIDTH - RIGHT);
  const y = logScale(
    all.map(({ tokensPerSecond }) => tokensPerSecond),
    HEIGHT - BOTTOM,
    TOP,
  );
  const max = Math.max(...all.map(({ bytes }) => bytes));
  const [best] = found as readonly [FoundConfiguration];
  const dot = (one: FoundConfiguration): Shape => {
    const radius = MIN_RADIUS +
      (MAX_RADIUS - MIN_RADIUS) * Math.sqrt(one.bytes / max);
    const [cx, cy] = [x.at(one.seconds), y.at(one.tokensPerSecond)];
    return {
      kind: "rect",
      radius,
      at: [cx - radius, cy - radius],
      size: [2 * radius, 2 * radius] as const,
      ink: slower.includes(one) ? "dense" : "experts",
      opacity: 0.75,
      border: isSame(one, best) ? "ink" : "card",
      title: titleOf(one),
    };
  };
  // The front may contain a mesh several times with different loads.
  const named = pareto.filter((one, i) =>
    pareto.findIndex(({ name }) => name === one.name) === i
  );
  return {
    size: [WIDTH, HEIGHT],
    label:
      `speed over time of a step of ${all.length} configurations, ${pareto.length} of them on the Pareto front`,
    shapes: [
      ...y.ticks.flatMap((value): Shape[] => [
        {
          kind: "path",
          ink: "line",
          width: 1,
          d: `M${LEFT} ${y.at(value)} H${WIDTH - RIGHT}`,
        },
        {
          kind: "text",
          anchor: "end",
          size: 11,
          ink: "soft",
          at: [LEFT - 8, y.at(value) + 4],
          text: countText(value),
        },
      ]),
      ...x.ticks.flatMap((value): Shape[] => [
        {
          kind: "path",
          ink: "line",
          width: 1,
          d: `M${x.at(value)} ${TOP} V${HEIGHT - BOTTOM}`,
        },
        {
          kind: "text",
          anchor: "middle",
          size: 11,
          ink: "soft",
          at: [x.at(value), HEIGHT - BOTTOM + 18],
          text: timeText(value),
        },
      ]),
      {
        kind: "text",
        at: [LEFT, HEIGHT - 18],
        size: 11,
        ink: "soft",
        text: "time of a step →",
      },
      {
        kind: "text",
        at: [12, TOP - 20],
        size: 11,
        ink: "soft",
        text: "tokens/s ↑",
      },
      ...[...all].sort((a, b) => b.bytes - a.bytes).map(dot),
      ...withoutOverlaps(named.map((one) => ({
        at: [x.at(one.seconds), y.at(one.tokensPerSecond)] as const,
        text: one.name,
      }))),
    ],
  };
}

function countText(value: number): string {
  return value.toLocaleString("en", { maximumFractionDigits: 2 });
}

/** Returns whether two results have the same configuration and load. */
export function isSame(a: FoundConfiguration, b: FoundConfiguration): boolean {
  return a.name === b.name && a.sequences === b.sequences &&
    a.tokens === b.tokens && strategyText(a) === strategyText(b);
}

function titleOf(one: FoundConfiguration): string {
  const how = strategyText(one);
  return `${one.name}${how === "" ? "" : `, ${how}`}, ${one.sequences} sequences
${rateText(one.tokensPerSecond)}, ${timeText(one.seconds)} a step, ${
    sizeText(one.bytes)
  } a rank`;
}

interface Label {
  readonly at: readonly [x: number, y: number];
  readonly text: string;
}

/** Places names above their dots, moved up if they would overlap. */
function withoutOverlaps(labels: readonly Label[]): Shape[] {
  const boxes: Label[] = [];
  for (const { at: [x, y], text } of labels) {
    let top = y - MAX_RADIUS - 5;
    const covers = ({ at: [otherX, otherY], text: other }: Label) =>
      Math.abs(otherX - x) < 3.3 * (text.length + other.length) + 6 &&
      Math.abs(otherY - top) < 12;
    while (boxes.some(covers)) top -= 13;
    boxes.push({ at: [x, top], text });
  }
  return boxes.map(({ at, text }) => ({
    kind: "text",
    anchor: "middle",
    size: 11.5,
    at,
    text,
  }));
}

/** Creates a logarithmic axis that contains all values with some margin, with round numbers as ticks. */
function logScale(values: readonly number[], start: number, end: number) {
  const low = Math.min(...values) / 1.3, high = Math.max(...values) * 1.3;
  const at = (value: number) =>
    Math.round(
      10 * (start + (end - start) * Math.log(value / low) /
          Math.log(high / low)),
    ) / 10;
  const ticks: number[] = [];
  const digits = high / low > 20 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 7];
  for (let p = Math.floor(Math.log10(low)); 10 ** p <= high; p++) {
    for (const digit of digits) {
      const value = digit * 10 ** p;
      if (value >= low && value <= high) ticks.push(value);
    }
  }
  return { at, ticks };
}
