/** The picture of a layer: ranks are tracks, stations are work, and dispatch and combine are switches. */

import type { StepFacts } from "../../spec/plan/facts.ts";
import { spanText } from "../../spec/text/parts.ts";
import type { Ink } from "../palette.ts";
import type { PlanView, ProgramView } from "../plan_view.ts";
import { curve, type Figure, line, type Shape } from "./figure.ts";
import type { Section } from "../sections.ts";
import { type Station, stationsOf } from "../stations.ts";
import { stepLink } from "../links.ts";
import {
  groupsOn,
  pairsOver,
  type Track,
  trackName,
  tracksOf,
} from "../tracks.ts";

/** Options of a track picture. */
export interface TrackPictureOptions {
  readonly program: ProgramView;
  readonly section: Section;
  /** A rank whose bundle is shown rank by rank. */
  readonly open?: number | undefined;
}

const LEFT = 132;
const TOP = 56;
const GAP = 44;
const WIDTH = 1180;

/** The state of a drawing. */
interface Drawing {
  readonly view: PlanView;
  readonly tracks: readonly Track[];
  /** Returns the center of a track. */
  readonly y: (track: number) => number;
  readonly bottom: number;
  readonly options: TrackPictureOptions;
}

/** Draws the tracks of one layer of a section. */
export function trackPicture(
  view: PlanView,
  options: TrackPictureOptions,
): Figure {
  const { program, section, open } = options;
  const tracks = tracksOf(view.plan, open);
  const stations = stationsOf(program, section);
  const y = (track: number) => TOP + track * GAP;
  const bottom = y(tracks.length - 1);
  const drawing: Drawing = { view, tracks, y, bottom, options };
  const widths = stations.map(minWidth);
  const total = widths.reduce((a, b) => a + b, 0);
  const stretch = Math.max(1, (WIDTH - LEFT - 24) / total);
  const width = LEFT + total * stretch + 24;
  let x = LEFT;
  const shapes = stations.flatMap((station, i) => {
    const from = x;
    x += widths[i]! * stretch;
    return stationShapes(station, { ...drawing, from, to: x });
  });
  return {
    size: [width, bottom + 66],
    label: labelOf(view, section, stations),
    shapes: [
      ...tracks.flatMap((track, i) => railShapes(track, i, drawing, width)),
      ...shapes,
    ],
  };
}

function labelOf(
  { plan }: PlanView,
  { name }: Section,
  stations: readonly Station[],
): string {
  const words = stations.map(({ kind, title, over }) =>
    kind === "station" ? title : `${title} over ${over.join(", ")}`
  );
  return `${name} on ${plan.ranks} ranks: ${words.join(", then ")}`;
}

/** Returns the minimum width of a station and its text. */
function minWidth({ kind, title, details, steps }: Station): number {
  if (kind === "tie") return Math.max(30, title.length * 6 + 8);
  const text = Math.max(
    title.length * 7.9,
    ...details.map((detail) => detail.length * 6.3),
  ) + 12;
  return kind === "switch"
    ? Math.max(150, text)
    : Math.max(62, text, Math.min(150, 44 + steps.length * 11));
}

function railShapes(
  track: Track,
  i: number,
  { y }: Drawing,
  width: number,
): Shape[] {
  const bundle = track.count > 1;
  return [
    {
      kind: "path",
      ink: "line",
      width: bundle ? 9 : 5,
      d: line([LEFT - 14, y(i)], [width - 18, y(i)]),
    },
    {
      kind: "text",
      text: trackName(track),
      anchor: "end",
      size: 12.5,
      at: [LEFT - 24, y(i) + 4],
      ink: "soft",
      ...bundle
        ? {
          link: `open/${track.first}`,
          action: `Show ${trackName(track)} one by one`,
        }
        : {},
    },
  ];
}

interface Span extends Drawing {
  readonly from: number;
  readonly to: number;
}

const DRAWN: {
  readonly [K in Station["kind"]]: (station: Station, span: Span) => Shape[];
} = {
  station: (station, { tracks, y, from, to, options: { program } }) =>
    tracks.map((track, i): Shape => ({
      kind: "rect",
      radius: 5,
      ink: station.role,
      at: [from + 3, y(i) - 11],
      size: [to - from - 6, 22] as const,
      title: `${trackName(track)}: ${station.title}\n${
        station.steps.map(stepLine).join("\n")
      }`,
      // One link is enough for the keyboard.
      ...i === 0 ? { link: stepLink(program, station.steps[0]!.index) } : {},
    })),
  switch: (station, { view, tracks, y, from, to }) => {
    const pairs = pairsOver(view.plan, tracks, station.over);
    const gap: Shape = {
      kind: "rect",
      ink: "card",
      at: [from, y(0) - 14],
      size: [to - from, y(tracks.length - 1) - y(0) + 28] as const,
    };
    const many = pairs.length > 80;
    return [
      gap,
      ...pairs.map(([a, b]): Shape => ({
        kind: "path",
        ink: station.role,
        width: many ? 1.2 : 2.6,
        d: curve([from, y(a)], [to, y(b)]),
        opacity: a === b ? 0.3 : many ? 0.45 : 0.75,
        title: `${trackName(tracks[a]!)} to ${trackName(tracks[b]!)}: ${
          station.details[1]
        }`,
      })),
    ];
  },
  tie: (station, { view, tracks, y, from, to }) => {
    const x = (from + to) / 2;
    const groups = groupsOn(view.plan, tracks, station.over);
    const ends = new Map<number, [number, number]>();
    for (const [track, on] of groups.entries()) {
      for (const group of on) {
        const known = ends.get(group);
        ends.set(group, [known?.[0] ?? track, track]);
      }
    }
    // Interleaved groups are drawn beside each other.
    const lines = [...ends.values()].filter(([a, b]) => b > a);
    const apart = Math.min(4, 20 / Math.max(1, lines.length));
    return [
      ...lines.slice(0, 16).map(([a, b], i): Shape => ({
        kind: "path",
        ink: station.role,
        width: 2.2,
        d: line(
          [x + (i - (lines.length - 1) / 2) * apart, y(a) - 9],
          [x + (i - (lines.length - 1) / 2) * apart, y(b) + 9],
        ),
        title: station.steps.map(stepLine).join("\n"),
      })),
      ...tracks.map((track, i): Shape => ({
        kind: "rect",
        ink: station.role,
        radius: 4,
        at: [x - 4, y(i) - 4],
        size: [8, 8] as const,
        title: `${trackName(track)}: ${station.steps.map(stepLine).join("\n")}`,
      })),
    ];
  },
};

function stationShapes(station: Station, span: Span): Shape[] {
  const { kind, role, title, details } = station;
  const { from, to, bottom } = span;
  const x = (from + to) / 2;
  const words = (text: string, y: number, rest: Partial<Shape>): Shape => ({
    kind: "text",
    text,
    at: [x, y],
    anchor: "middle",
    size: 11.5,
    ink: "soft" as Ink,
    ...rest,
  } as Shape);
  const below = details.map((detail, i) =>
    words(detail, bottom + (kind === "switch" ? 33 : 44) + i * 15, {})
  );
  const shapes = DRAWN[kind](station, span);
  if (kind === "tie") {
    return [...shapes, words(title, bottom + 30, { size: 10.5 })];
  }
  const name = kind === "switch"
    ? words(title, TOP - 28, { size: 14, bold: true, ink: role })
    : words(title, bottom + 29, { size: 12.5, bold: true, ink: "ink" });
  return [...shapes, name, ...below];
}

/** Formats a step: `dot over embed  matmul_512x8  examples/layer.ts:17:20`. */
function stepLine({ step }: StepFacts): string {
  const what = step.part
    ? `${step.part.op}: ${step.part.part}`
    : step.label ?? step.op;
  const how = step.op === "launch" ? step.kernel : step.op;
  const where = step.span ? spanText(step.span) : "";
  return [what, how, where].filter((text) => text !== "").join("  ");
}
