/** The summary of a plan on one screen. */

import type {
  LayerClass,
  LayerSeconds,
  Phase,
  PlanSummary,
  PredictedStep,
  RankClass,
} from "../spec/mod.ts";
import { meshFlag } from "../spec/mesh.ts";
import type { RolloutBytes } from "../spec/plan_summary.ts";
import { sizeText } from "../spec/size_text.ts";
import { timeText } from "../spec/time_text.ts";
import { formatTable } from "./table.ts";

/** The names of bounds for users. */
const BOUNDS: { readonly [axis: string]: string } = {
  token: "tokens a step",
  sequence: "sequences at once",
  context: "positions each",
  page: "pages",
  within: "positions a page",
};

/** Pages of layers with limited attention. */
const LIMITED_PAGES = /^page_(window|chunk)_/;

/** Describes the weights of rollouts. */
function rolloutLine({ mesh, shared, moved, copied }: RolloutBytes): string {
  return `rollouts on ${meshFlag(mesh)}: ${
    sizeText(moved)
  } of weights moved after each update, ${
    sizeText(shared)
  } shared with the training, ${sizeText(copied)} copied once`;
}

/** Formats the summary as text. It fits one screen for every size of model. */
export function formatSummary(summary: PlanSummary): string {
  const { model, mesh, target, bounds, ranks, problems, notes } = summary;
  const { predicted = {}, streamed, rollouts } = summary;
  const active = model.activeParameters === undefined
    ? ""
    : `, ${
      countText(model.activeParameters, "B")
    } active (embeddings excluded)`;
  const stored = Object.entries(model.stored).map(([name, bytes]) =>
    Object.keys(model.stored).length === 1 ? name : `${name} ${sizeText(bytes)}`
  );
  const all = Object.values(mesh).reduce((n, size) => n * size, 1);
  return [
    `model   ${countText(model.parameters, "B")} parameters${active}, ${
      sizeText(model.bytes)
    } (${stored.join(", ")})`,
    `mesh    ${meshFlag(mesh)} (${all} ${all === 1 ? "rank" : "ranks"})${
      target === undefined ? "" : ` on '${target}'`
    }`,
    `bounds  ${
      Object.entries(bounds).map(([axis, size]) =>
        `${size} ${BOUNDS[axis] ?? axis.replace(LIMITED_PAGES, "pages of $1 ")}`
      ).join(", ")
    }`,
    "",
    ...rankLines(ranks),
    ...layerLines(summary),
    ...predictedLines(predicted),
    ...rollouts ? ["", rolloutLine(rollouts)] : [],
    ...problems.length === 0 ? [] : [
      "",
      `does not fit (${problems.length} ${
        problems.length === 1 ? "problem" : "problems"
      })`,
      ...problems.flatMap(({ what, fix }) => [
        `  ${what}`,
        `    fix: ${fix}`,
      ]),
    ],
    ...streamed
      ? [
        "",
        `with experts on disk, by '${streamed.device}'`,
        ...rankLines(streamed.ranks),
        ...predictedLines(streamed.predicted),
      ]
      : [],
    ...notes.length === 0 ? [] : ["", ...notes.map((note) => `note: ${note}`)],
  ].join("\n") + "\n";
}

function rankLines(ranks: readonly RankClass[]): string[] {
  return formatTable([rankHeader(ranks), ...ranks.map(rankRow)]);
}

function rankHeader(ranks: readonly RankClass[]): string[] {
  const limited = ranks.some(({ limit }) => limit !== undefined);
  return [
    "ranks",
    "experts",
    "weights",
    "state",
    "scratch",
    "staging",
    "total",
    ...limited ? ["of", "headroom"] : [],
    ...ranks[0]?.expertMemory ? ["experts in memory"] : [],
  ];
}

function rankRow(
  { count, first, bytes, limit, headroom, experts, expertMemory }: RankClass,
) {
  const { weights, state, scratch, staging, total } = bytes;
  return [
    count === 1 ? `rank ${first}` : `${count} from ${first}`,
    experts.length === 0 ? "-" : experts.join(" or "),
    ...[weights, state, scratch, staging, total].map(sizeText),
    ...limit === undefined || headroom === undefined ? [] : [
      sizeText(limit),
      headroom < 0 ? `-${sizeText(-headroom)}` : sizeText(headroom),
    ],
    ...expertMemory
      ? [
        `${sizeText(expertMemory.bytes)} (${
          percentText(expertMemory.bytes / Math.max(1, expertMemory.all))
        })`,
      ]
      : [],
  ];
}

function layerLines({ layers, predicted = {} }: PlanSummary): string[] {
  if (layers.length === 0) return [];
  const names = ["dispatch", "combine"] as const;
  const phases = Object.keys(predicted) as Phase[];
  const sent = (layer: LayerClass, name: (typeof names)[number]) => {
    const texts = layer.exchanges.filter((e) => e.name === name).map((e) =>
      `${sizeText(e.bytesPerToken)} over ${e.over.join("+")}`
    );
    return texts.length > 0 ? texts.join(", ") : "-";
  };
  return [
    "",
    ...formatTable([
      [
        "layers, for each token",
        "FLOPs",
        ...names.map((n) => `${n} to others`),
        ...phases.map((phase) => `${phase}, each`),
      ],
      ...layers.map((layer) => [
        `${layer.count} x ${layer.kind}${
          layer.layers === "" ? "" : ` (${layer.layers})`
        }`,
        countText(layer.flopsPerToken, "G"),
        ...names.map((name) => sent(layer, name)),
        ...phases.map((phase) => layerTime(layer.seconds?.[phase])),
      ]),
    ]),
  ];
}

/** `1.2 ms, 61 % exchange` */
function layerTime(seconds: LayerSeconds | undefined): string {
  if (seconds === undefined) return "-";
  const { total, exchange, bound } = seconds;
  const why = exchange > 0
    ? `${percentText(exchange / total)} exchange`
    : bound;
  return total > 0 ? `${timeText(total)}, ${why}` : timeText(total);
}

function predictedLines(
  predicted: NonNullable<PlanSummary["predicted"]>,
): string[] {
  const steps = Object.entries(predicted) as [Phase, PredictedStep][];
  if (steps.length === 0) return [];
  const streams = steps.some(([, { streamed }]) => streamed);
  const staged = steps.some(([, { inFlight }]) => inFlight);
  return [
    "",
    ...formatTable([
      [
        "predicted",
        "tokens",
        "sequences",
        "after",
        "step",
        ...staged ? ["in flight"] : [],
        "speed",
        "bound by",
        "memory floor",
        ...streams ? ["disk, per token", "hit rate"] : [],
      ],
      ...steps.map(([phase, step]) => [
        phase,
        ...[step.tokens, step.sequences, step.past].map(String),
        `${step.exact ? "" : ">= "}${timeText(step.seconds)}`,
        ...staged ? [String(step.inFlight ?? 1)] : [],
        `${countText(step.tokensPerSecond, "G")} tokens/s`,
        `${step.bound} (${percentText(step.parts[step.bound] / step.seconds)})`,
        timeText(step.memoryFloor),
        ...step.streamed
          ? [
            sizeText(Math.round(step.streamed.bytes / step.tokens)),
            percentText(step.streamed.hitRate),
          ]
          : [],
      ]),
    ]),
    ...predicted.prefill && predicted.decode
      ? [
        `time to the first token ${
          timeText(predicted.prefill.seconds)
        }, to each further one ${timeText(nextTokenSeconds(predicted.decode))}`,
      ]
      : [],
  ];
}

/** Seconds from a token of a sequence to its next one. */
function nextTokenSeconds(
  { sequences, inFlight = 1, seconds, tokensPerSecond }: PredictedStep,
): number {
  return inFlight === 1 ? seconds : inFlight * sequences / tokensPerSecond;
}

function percentText(part: number): string {
  return `${Math.round(100 * part)} %`;
}

/** `46.70 B`, `12.90 M`. 10^9 is written `B` for parameters and `G` for everything else. */
function countText(count: number, billions: "B" | "G"): string {
  const units = ["", " k", " M", ` ${billions}`, " T"];
  let unit = 0;
  let value = count;
  for (; value >= 1000 && unit < units.length - 1; unit++) value /= 1000;
  return `${
    unit === 0 && Number.isInteger(value)
      ? value
      : value.toPrecision(value < 10 ? 3 : 4)
  }${units[unit]}`;
}
