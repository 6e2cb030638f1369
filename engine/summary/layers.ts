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
import { layersOf } from "../../spec/layers.ts";
import type { ExchangeSummary, LayerClass } from "../../spec/plan_summary.ts";

/** Layers that are alike, in the order of the first of each; what has no number is one class. */
export function layerClasses(
  plan: Plan,
  params: readonly ParamFacts[],
): LayerClass[] {
  const exchanges = exchangesOf(plan);
  const byLayer = new Map<string, ParamFacts[]>();
  for (const param of params) {
    const layer = layerOf(param.name);
    byLayer.set(layer, [...byLayer.get(layer) ?? [], param]);
  }
  const classes = new Map<string, { fields: LayerFields; layers: string[] }>();
  for (const [layer, own] of byLayer) {
    const fields: LayerFields = {
      kind: layer === ""
        ? "vocabulary"
        : own.some(({ expert }) => expert !== undefined)
        ? "experts"
        : "dense",
      flopsPerToken: 2 * own.filter(({ use }) => use === "matrix")
        .reduce((n, { active }) => n + active, 0),
      exchanges: exchanges.get(layer) ?? [],
    };
    const key = JSON.stringify(fields);
    const known = classes.get(key) ?? { fields, layers: [] };
    known.layers.push(layer);
    classes.set(key, known);
  }
  // Models without numbers have one layer, whatever it is.
  const single = byLayer.size === 1;
  return [...classes.values()]
    .sort((a, b) => Number(a.layers[0] === "") - Number(b.layers[0] === ""))
    .map(({ fields, layers }) => ({
      count: layers.length,
      ...fields,
      ...single && byLayer.has("")
        ? {
          kind: params.some(({ expert }) => expert !== undefined)
            ? "experts" as const
            : "dense" as const,
        }
        : {},
      layers: rangesOf(layers),
    }));
}

type LayerFields = Omit<LayerClass, "count" | "layers">;

/** The number in the name of a parameter, or nothing. */
function layerOf(name: string): string {
  return /(?:^|\.)(\d+)\./.exec(name)?.[1] ?? "";
}

/** `0-2, 4` */
function rangesOf(layers: readonly string[]): string {
  const ranges: [number, number][] = [];
  for (const layer of layers) {
    if (layer === "") continue;
    const last = ranges.at(-1);
    if (last && last[1] + 1 === Number(layer)) last[1]++;
    else ranges.push([Number(layer), Number(layer)]);
  }
  return ranges.map(([a, b]) => a === b ? `${a}` : `${a}-${b}`).join(", ");
}

/** What each layer exchanges, by its number. */
function exchangesOf(plan: Plan): Map<string, ExchangeSummary[]> {
  const found = new Map<string, ExchangeSummary[]>();
  const [program] = plan.programs;
  if (!program) return found;
  const { names, of } = layersOf(plan, program);
  const choices = choicesOf(plan, program);
  const experts = expertSplits(program);
  for (const [i, step] of program.steps.entries()) {
    if (step.op !== "allToAll" || !step.part) continue;
    const { verb, routing, part } = step.part;
    if (!part.startsWith("exchange")) continue;
    const layer = /\d+/.exec(names[of[i]!]!)?.[0] ?? "";
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
