/** The picture of a recorded run: a track per rank with its events. Width is time. */

import { PAUSE_NAMES } from "../pauses.ts";
import type { Figure, Shape } from "./figure.ts";
import {
  criticalPath,
  durationText,
  layerTimes,
  type Timed,
  type TimedRun,
} from "../time.ts";

const WIDTH = 1180;
const LEFT = 84;
const RIGHT = 10;
const TOP = 26;
const GAP = 34;
/** Tracks are higher for up to two ranks. */
const FEW = 2, HIGH = 64;
/** Maximum number of drawn ranks. */
const MAX = 64;

/** Returns the time at a pixel of the picture of a part of a run. */
export function timeAt(x: number, [from, to]: TimeWindow): number {
  const part = (x - LEFT) / (WIDTH - LEFT - RIGHT);
  return from + Math.max(0, Math.min(1, part)) * (to - from);
}

/** Returns the pixels of a range as fractions of the picture's width. Undefined if the range is not visible. */
export function rangeOnPicture(
  range: TimeWindow,
  [from, to]: TimeWindow,
): TimeWindow | undefined {
  if (range[1] < from || range[0] > to) return undefined;
  const part = (time: number) =>
    (LEFT +
      (WIDTH - LEFT - RIGHT) *
        Math.max(0, Math.min(1, (time - from) / (to - from)))) / WIDTH;
  return [part(range[0]), part(range[1])];
}

/** A part of a run, in microseconds from its start. */
export type TimeWindow = readonly [from: number, to: number];

/** Draws a run or a part of it over time. */
export function timePicture(
  run: TimedRun,
  [from, to]: TimeWindow = [0, run.microseconds],
): Figure {
  const { microseconds, events, pauses, name, predicted, lanes: names } = run;
  const ranks = [...new Set(events.map(({ rank }) => rank))]
    .sort((a, b) => a - b).slice(0, MAX);
  const width = WIDTH - LEFT - RIGHT;
  const scale = width / Math.max(1, to - from);
  const xOf = (time: number) =>
    LEFT + Math.max(0, Math.min(width, (time - from) * scale));
  const gap = ranks.length <= FEW ? HIGH : GAP;
  const half = gap / 2 - 7;
  const bottom = TOP + ranks.length * gap;
  const marks = [0, 0.25, 0.5, 0.75, 1].flatMap((part): Shape[] => {
    const time = from + part * (to - from);
    const x = xOf(time);
    return [
      {
        kind: "path",
        ink: "line",
        width: 1,
        d: `M${x.toFixed(1)} ${TOP - 6} V${bottom}`,
      },
      {
        kind: "text",
        size: 11,
        ink: "soft",
        anchor: part === 1 ? "end" : part === 0 ? "start" : "middle",
        at: [x, TOP - 11],
        text: durationText(time),
      },
    ];
  });
  // The critical path of a recorded run is unknown because the clocks of processes differ.
  const critical = new Set(predicted ? criticalPath(run) : []);
  const lanes = ranks.flatMap((rank, i): Shape[] => {
    const y = TOP + i * gap + gap / 2 - 2;
    return [
      {
        kind: "text",
        anchor: "end",
        size: 12.5,
        ink: "soft",
        at: [LEFT - 12, y + 4],
        text: names?.get(rank) ?? `rank ${rank}`,
      },
      {
        kind: "rect",
        at: [LEFT, y - 2.5],
        ink: "line",
        size: [width, 5] as const,
      },
      ...pauses.filter(({ rank: of, start, duration }) =>
        of === rank && start <= to && start + duration >= from
      ).flatMap(({ reason, start, duration }): Shape[] => {
        const x = xOf(start);
        const long = xOf(start + duration) - x;
        if (long < 0.6) return [];
        return [{
          kind: "rect",
          at: [x, y - half / 2],
          size: [long, half],
          ink: "card",
          border: "soft",
          title: `${PAUSE_NAMES[reason]}\n${durationText(duration)}, at ${
            durationText(start)
          }`,
          time: [start, start + duration],
        }];
      }),
      ...events.filter(({ rank: of, start, duration }) =>
        of === rank && start <= to && start + duration >= from
      ).flatMap((event): Shape[] => {
        const { name, role, start, duration } = event;
        const x = xOf(start);
        const long = Math.max(0.6, xOf(start + duration) - x);
        const title = `${name}\n${durationText(duration)}, at ${
          durationText(start)
        }`;
        return [
          {
            kind: "rect",
            at: [x, y - half],
            size: [long, 2 * half],
            ink: role,
            title,
            time: [start, start + duration],
          },
          ...critical.has(event)
            ? [{
              kind: "rect" as const,
              ink: "ink" as const,
              at: [x, y + half + 2] as const,
              size: [long, 3] as const,
            }]
            : [],
        ];
      }),
    ];
  });
  return {
    size: [WIDTH, bottom + 10],
    label: `${predicted ? "predicted: " : "a recorded run of "}${name}, ${
      durationText(microseconds)
    }${
      to - from < microseconds
        ? `, from ${durationText(from)} to ${durationText(to)}`
        : ""
    }`,
    shapes: [
      ...marks,
      ...layerMarks(events, { from, to, xOf, bottom }),
      ...lanes,
    ],
  };
}

/** Minimum distance between the numbers of two layers, in pixels. */
const APART = 26;

/** Draws a line at the start of each layer on the first rank, with its number if there is room. */
function layerMarks(
  events: readonly Timed[],
  { from, to, xOf, bottom }: {
    readonly from: number;
    readonly to: number;
    readonly xOf: (time: number) => number;
    readonly bottom: number;
  },
): Shape[] {
  let last = -Infinity;
  return layerTimes({ events }).flatMap(
    ([layer, [start, end]]): Shape[] => {
      if (start < from || start > to) return [];
      const x = xOf(start);
      const room = x - last >= APART;
      if (room) last = x;
      return [
        {
          kind: "rect",
          at: [x, TOP],
          ink: "line",
          size: [1, bottom - TOP],
          title: `layer ${layer}`,
          time: [start, end],
        },
        ...room
          ? [{
            kind: "text" as const,
            size: 10,
            ink: "soft" as const,
            at: [x + 3, bottom + 6] as const,
            text: `${layer}`,
          }]
          : [],
      ];
    },
  );
}
