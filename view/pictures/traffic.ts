/** The heat map of an exchange: bytes between each pair of ranks. */

import { sizeText } from "../../spec/size_text.ts";
import type { PlanView } from "../plan_view.ts";
import type { Figure, Shape } from "./figure.ts";
import type { Traffic } from "../traffic.ts";
import { type Track, trackName, tracksOf } from "../tracks.ts";

const LEFT = 120;
const TOP = 56;

/** Options of a heat map. */
export interface TrafficPictureOptions {
  readonly traffic: Traffic;
  /** Bytes to show instead of the planned ones. */
  readonly shown?: Pick<Traffic, "between"> | false | undefined;
  /** A rank whose bundle is shown rank by rank. */
  readonly open?: number | undefined;
}

/** Draws the bytes between ranks or bundles of ranks in a step with the maximum number of tokens. */
export function trafficPicture(
  { plan }: PlanView,
  { traffic, shown, open }: TrafficPictureOptions,
): Figure {
  const tracks = tracksOf(plan, open);
  const cell = tracks.length > 16
    ? 28
    : Math.max(44, Math.min(84, 700 / tracks.length));
  const height = Math.min(cell, 34);
  const bytes = tracks.map((from) =>
    tracks.map((to) => sumBetween(shown || traffic, from, to))
  );
  const max = Math.max(1, ...bytes.flat());
  const shapes = bytes.flatMap((row, i) =>
    row.flatMap((value, j): Shape[] => {
      const [x, y] = [LEFT + j * cell, TOP + i * height];
      const stays = i === j && tracks[i]!.count === 1;
      const share = value / max;
      return [
        {
          kind: "rect",
          at: [x + 1, y + 1],
          size: [cell - 2, height - 2],
          ink: stays ? "line" : roleOf(traffic),
          radius: 3,
          opacity: Number(
            (stays ? 0.7 : value === 0 ? 0.06 : 0.15 + 0.6 * share).toFixed(2),
          ),
          title: `${trackName(tracks[i]!)} to ${trackName(tracks[j]!)}: ${
            sizeText(Math.round(value))
          }${stays && value > 0 ? ", which stay on the rank" : ""}`,
        },
        ...cell < 40 ? [] : [{
          kind: "text" as const,
          anchor: "middle" as const,
          size: 10.5,
          at: [x + cell / 2, y + height / 2 + 4] as const,
          ink: !stays && share > 0.4 ? "deep" as const : "ink" as const,
          text: value === 0 ? "–" : shortSize(value),
        }],
      ];
    })
  );
  const side = tracks.map((track, i): Shape => ({
    kind: "text",
    anchor: "end",
    ink: "soft",
    size: 11.5,
    at: [LEFT - 8, TOP + i * height + height / 2 + 4],
    text: trackName(track),
  }));
  const top = tracks.map((track, j): Shape => ({
    kind: "text",
    anchor: "middle",
    ink: "soft",
    size: 11,
    at: [LEFT + j * cell + cell / 2, TOP - 8],
    text: track.count === 1 || cell < 40
      ? `${track.first}`
      : `${track.first}–${track.first + track.count - 1}`,
  }));
  return {
    size: [LEFT + tracks.length * cell + 12, TOP + tracks.length * height + 12],
    label: `${
      shown ? "recorded bytes" : "bytes"
    } of ${traffic.name} from rank to rank`,
    shapes: [
      {
        kind: "text",
        at: [LEFT, 20],
        size: 12,
        ink: "soft",
        text: "to rank →",
      },
      {
        kind: "text",
        at: [LEFT - 8, TOP - 8],
        size: 12,
        ink: "soft",
        text: "from ↓",
        anchor: "end",
      },
      ...side,
      ...top,
      ...shapes,
    ],
  };
}

function roleOf({ at: { step } }: Traffic): "dispatch" | "combine" | "dense" {
  return step.part?.op ?? "dense";
}

function sumBetween(
  { between }: Pick<Traffic, "between">,
  from: Track,
  to: Track,
): number {
  let bytes = 0;
  for (let a = from.first; a < from.first + from.count; a++) {
    for (let b = to.first; b < to.first + to.count; b++) bytes += between(a, b);
  }
  return bytes;
}

/** Shortens `1.5 MiB` to `1.5M`. */
function shortSize(bytes: number): string {
  return sizeText(Math.round(bytes))
    .replace(/ ([KMGT])iB$/, "$1").replace(/ bytes$/, "");
}
