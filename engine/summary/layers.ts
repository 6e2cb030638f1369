/** What layers compute and send for a token, equal ones together. */

import type { ParamFacts } from "../../compiler/mod.ts";
import {
  positionsReached,
  shareOfColumns,
  unitEnds,
} from "../../spec/bytes.ts";
import { positionsOver } from "../../spec/mesh.ts";
import {
  type AllToAllStep,
  onRank,
  type Plan,
  type Program,
} from "../../spec/plan.ts";
import { layerOf, layersOf } from "../../spec/layers.ts";
import type { StandIns } from "./stand_ins.ts";
import { layerSeconds, type Predictions } from "./predictions.ts";
import type { ExchangeSummary, LayerClass } from "../../spec/plan_summary.ts";

/** Layers that are alike, in the order of the first of each; what has no number is one class. */
export function layerClasses(
  plan: Plan,
  { params, stands, predicted }: {
    readonly params: readonly ParamFacts[];
    readonly stands: StandIns;
    readonly predicted: Predictions;
  },
): LayerClass[] {
  const exchanges = exchangesOf(plan);
  const byLayer = new Map<number | undefined, ParamFacts[]>();
  for (const param of params) {
    const layer = layerOf(param.name);
    byLayer.set(layer, [...byLayer.get(layer) ?? [], param]);
  }
  const classes = new Map<string, LayerAlike>();
  for (const [layer, own] of byLayer) {
    const fields: LayerFields = {
      kind: layer === undefined
        ? "vocabulary"
        : own.some(({ expert }) => expert !== undefined)
        ? "experts"
        : "dense",
      flopsPerToken: 2 * own.filter(({ use }) => use === "matrix")
        .reduce((n, { active }) => n + active, 0),
      exchanges: exchanges.get(layer) ?? [],
    };
    const key = JSON.stringify(fields);
    const known = classes.get(key) ?? { fields, built: [], layers: [] };
    known.built.push(layer);
    if (layer !== undefined) known.layers.push(...stands.of(layer));
    classes.set(key, known);
  }
  // Models without numbers have one layer, whatever it is.
  const single = byLayer.size === 1;
  return [...classes.values()]
    .sort((a, b) =>
      Number(a.layers.length === 0) - Number(b.layers.length === 0)
    )
    .map(({ fields, built, layers }) => ({
      count: Math.max(1, layers.length),
      ...fields,
      ...single && byLayer.has(undefined)
        ? {
          kind: params.some(({ expert }) => expert !== undefined)
            ? "experts" as const
            : "dense" as const,
        }
        : {},
      layers: rangesOf(layers.sort((a, b) => a - b)),
      ...layerSeconds(predicted, built, stands),
    }));
}

type LayerFields = Omit<LayerClass, "count" | "layers">;

/** Layers that are alike: those that are built, and all that they stand for. */
interface LayerAlike {
  readonly fields: LayerFields;
  readonly built: (number | undefined)[];
  readonly layers: number[];
}

/** `0-2, 4` */
function rangesOf(layers: readonly number[]): string {
  const ranges: [number, number][] = [];
  for (const layer of layers) {
    const last = ranges.at(-1);
    if (last && last[1] + 1 === layer) last[1]++;
    else ranges.push([layer, layer]);
  }
  return ranges.map(([a, b]) => a === b ? `${a}` : `${a}-${b}`).join(", ");
}

/** What each layer exchanges, by its number. */
function exchangesOf(plan: Plan): Map<number | undefined, ExchangeSummary[]> {
  const found = new Map<number | undefined, ExchangeSummary[]>();
  const [program] = plan.programs;
  if (!program) return found;
  const { numbers, of } = layersOf(plan, program);
  const choices = choicesOf(plan, program);
  const experts = expertSplits(program);
  for (const [i, step] of program.steps.entries()) {
    if (step.op !== "allToAll" || !step.part) continue;
    const { verb, routing, part } = step.part;
    if (!part.startsWith("exchange")) continue;
    const layer = numbers[of[i]!];
    const list = found.get(layer) ?? [];
    const chosen = choices.get(routing) ?? 0;
    // Where dispatch is deduplicated, a word for each choice says where it finds its token.
    const bytes = part === "exchange places"
      ? toOthers(plan, step, chosen * 4)
      : bytesPerToken(plan, step, {
        choices: chosen,
        splits: experts.get(routing) ?? step.splits,
      });
    const known = list.findIndex(({ name }) => name === verb);
    const before = known < 0 ? 0 : list[known]!.bytesPerToken;
    const entry = {
      name: verb,
      bytesPerToken: Math.round(before + bytes),
      over: step.over,
    };
    if (known < 0) list.push(entry);
    else list[known] = entry;
    found.set(layer, list);
  }
  return found;
}

/** Where the experts of each position and chunk end, by routing: as what goes by choices has it, places or what comes back. */
function expertSplits(program: Program): Map<number, readonly number[]> {
  const chunks = new Map<string, AllToAllStep[]>();
  const ends = new Map<number, readonly number[]>();
  for (const step of program.steps) {
    if (step.op !== "allToAll" || !step.part) continue;
    const { verb, part, routing } = step.part;
    if (verb !== "combine" && part !== "exchange places") continue;
    if (verb === "combine" && chunks.has(`places ${routing}`)) continue;
    const key = `${verb === "combine" ? "back" : "places"} ${routing}`;
    const known = [...chunks.get(key) ?? [], step];
    chunks.set(key, known);
    ends.set(routing, unitEnds(known));
  }
  return ends;
}

/** Bytes of a token to other ranks if experts are chosen evenly; of a chunk, its part. */
function bytesPerToken(
  plan: Plan,
  step: AllToAllStep,
  { choices, splits }: {
    readonly choices: number;
    readonly splits: readonly number[];
  },
): number {
  const rows = isOnce(plan, step) ? positionsReached(splits, choices) : choices;
  return toOthers(plan, step, rows * step.rowBytes * shareOfColumns(step));
}

/** What leaves a rank, of what goes to all positions evenly. */
function toOthers(plan: Plan, { over }: AllToAllStep, bytes: number): number {
  const positions = positionsOver(plan.mesh, over);
  return bytes * (positions - 1) / positions;
}

/** Whether an exchange moves each token once to a position: other exchanges of its routing say where choices find it. */
function isOnce(plan: Plan, step: AllToAllStep): boolean {
  return plan.programs.some(({ steps }) =>
    steps.some((other) =>
      other.op === "allGather" && other.part?.part === "exchange reach" &&
      other.to === step.counts
    )
  );
}

/** Choices of a token, by routing: the last axis of the buffers that say where each choice is sent. */
function choicesOf(plan: Plan, program: Program): Map<number, number> {
  const found = new Map<number, number>();
  for (const step of program.steps) {
    if (step.op !== "launch" || step.part?.part !== "count") continue;
    for (const name of Object.values(step.bindings)) {
      const { axes, dtype } = plan.buffers[name]!;
      const last = axes.at(-1)!;
      if (axes.length < 2 || dtype !== "u32" || last.dynamic) continue;
      found.set(step.part.routing, onRank(last.size, 0));
    }
  }
  return found;
}
