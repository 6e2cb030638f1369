/** The summary of a plan on one screen. */

import type { LayerClass, PlanSummary, RankClass } from "../spec/mod.ts";
import { sizeText } from "../spec/size_text.ts";
import { formatTable } from "./table.ts";

/** What people call a bound. */
const BOUNDS: { readonly [axis: string]: string } = {
  token: "tokens a step",
  sequence: "sequences at once",
  context: "positions each",
};

/** The summary as text, one screen at any size. */
export function formatSummary(summary: PlanSummary): string {
  const { model, mesh, target, bounds, ranks, problems, notes } = summary;
  const active = model.activeParameters === undefined
    ? ""
    : `, ${countText(model.activeParameters, "B")} active`;
  const stored = Object.entries(model.stored).map(([name, bytes]) =>
    Object.keys(model.stored).length === 1 ? name : `${name} ${sizeText(bytes)}`
  );
  const all = Object.values(mesh).reduce((n, size) => n * size, 1);
  const meshText = Object.entries(mesh)
    .map(([axis, size]) => `${axis}=${size}`).join(",");
  return [
    `model   ${countText(model.parameters, "B")} parameters${active}, ${
      sizeText(model.bytes)
    } (${stored.join(", ")})`,
    `mesh    ${meshText} (${all} ${all === 1 ? "rank" : "ranks"})${
      target === undefined ? "" : ` on '${target}'`
    }`,
    `bounds  ${
      Object.entries(bounds).map(([axis, size]) =>
        `${size} ${BOUNDS[axis] ?? axis}`
      ).join(", ")
    }`,
    "",
    ...formatTable([rankHeader(ranks), ...ranks.map(rankRow)]),
    ...layerLines(summary),
    ...problems.length === 0 ? [] : [
      "",
      `does not fit (${problems.length} ${
        problems.length === 1 ? "problem" : "problems"
      })`,
      ...problems.flatMap(({ what, mend }) => [
        `  ${what}`,
        `    mend: ${mend}`,
      ]),
    ],
    ...notes.length === 0 ? [] : ["", ...notes.map((note) => `note: ${note}`)],
  ].join("\n") + "\n";
}

function rankHeader(ranks: readonly RankClass[]): string[] {
  const limited = ranks.some(({ limit }) => limit !== undefined);
  return [
    ...["ranks", "experts", "weights", "state", "scratch", "staging", "total"],
    ...limited ? ["of", "headroom"] : [],
  ];
}

function rankRow({ count, first, bytes, limit, headroom, experts }: RankClass) {
  const { weights, state, scratch, staging, total } = bytes;
  return [
    count === 1 ? `rank ${first}` : `${count} from ${first}`,
    `${experts}`,
    ...[weights, state, scratch, staging, total].map(sizeText),
    ...limit === undefined || headroom === undefined ? [] : [
      sizeText(limit),
      headroom < 0 ? `-${sizeText(-headroom)}` : sizeText(headroom),
    ],
  ];
}

function layerLines({ layers }: PlanSummary): string[] {
  if (layers.length === 0) return [];
  const names = ["dispatch", "combine"] as const;
  const sent = (layer: LayerClass, name: (typeof names)[number]) => {
    const exchange = layer.exchanges.find((e) => e.name === name);
    return exchange
      ? `${sizeText(exchange.bytesPerToken)} over ${exchange.over.join("+")}`
      : "-";
  };
  return [
    "",
    ...formatTable([
      [
        "layers, for each token",
        "FLOPs",
        ...names.map((n) => `${n} to others`),
      ],
      ...layers.map((layer) => [
        `${layer.count} x ${layer.kind}${
          layer.layers === "" ? "" : ` (${layer.layers})`
        }`,
        countText(layer.flopsPerToken, "G"),
        ...names.map((name) => sent(layer, name)),
      ]),
    ]),
  ];
}

/** `46.70 B`, `12.90 M`. Thousands of millions are `B` of parameters and `G` of all else. */
function countText(count: number, billions: "B" | "G"): string {
  const units = ["", " k", " M", ` ${billions}`, " T"];
  let unit = 0;
  let value = count;
  for (; value >= 1000 && unit < units.length - 1; unit++) value /= 1000;
  return `${unit === 0 ? value : value.toPrecision(value < 10 ? 3 : 4)}${
    units[unit]
  }`;
}
