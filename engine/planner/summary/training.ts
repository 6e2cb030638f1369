/** Compiles a training step with representative layers. */

import {
  adamw,
  compileTraining,
  paramFacts,
  trace,
  type TrainedDType,
  type ZeroStage,
} from "../../../compiler/mod.ts";
import { DataError } from "../../../spec/errors.ts";
import type { Plan } from "../../../spec/plan/plan.ts";
import type { RankBytes, RankClass } from "../../../spec/plan_summary.ts";
import { compileOptions } from "../../open.ts";
import { groupRankOf, stageAxis } from "../../../spec/mesh.ts";
import {
  type CompileRepresentativesOptions,
  forMachine,
  type ModelTarget,
  representativesOf,
} from "./compiled.ts";
import { EACH_ITSELF, type Representatives } from "./representatives.ts";
import { summarizeRanks } from "./ranks.ts";
import type { ModelWeights } from "./weights.ts";
import type { Bounds } from "../../../models/mod.ts";

/** Options of compiling a training step for a machine. */
export interface CompileTrainingRepresentativesOptions
  extends Omit<CompileRepresentativesOptions, "bounds"> {
  readonly bounds: Bounds;
  readonly zero?: ZeroStage;
  /** Whether attention and experts are recomputed. Default: false. */
  readonly recompute?: boolean;
  /** Micro-batches of a step on pipeline stages. Default: 1. */
  readonly microBatches?: number;
}

/**
 * A plan of representative layers, and the memory of the fullest ranks with all layers, or a lower bound if it does not
 * fit.
 */
export interface TrainingRepresentatives {
  readonly plan: Plan;
  readonly weights: ModelWeights;
  readonly fullest: RankClass;
  /**
   * Plans with one more layer of a kind, on each stage, and the number of such layers on the stage with the most. Empty
   * if the plan does not fit.
   */
  readonly grown: readonly { readonly plan: Plan; readonly layers: number }[];
}

/**
 * Compiles a training step of a published model with AdamW and gradient clipping. Saved activations grow with each
 * layer; a plan with one more layer of a kind shows by how much: exactly for weights and states, to a few percent for
 * scratch memory, whose sharing changes. Throws DataError for a dtype that cannot be trained.
 */
export async function compileTrainingRepresentatives(
  target: ModelTarget,
  options: CompileTrainingRepresentativesOptions,
): Promise<TrainingRepresentatives> {
  const { machine, limits, dtype: asked, bounds, ...given } = options;
  const { zero = 0, recompute = false, microBatches = 1 } = given;
  if (target.kind === "model") {
    throw new DataError(
      "Cannot plan the training of a model file by kinds of layers: equal layers are known only for published models. Give a config.json",
    );
  }
  const { published } = target.kind === "checkpoint"
    ? target.checkpoint
    : target.configuration;
  const dtype = asked === undefined ? "bf16" : trainedDType(asked);
  const { representatives, stageOf, stagesOf } = representativesOf(
    target,
    given,
  );
  const built = (layers: readonly number[]) =>
    published.build({
      ...bounds,
      ...representatives === EACH_ITSELF ? {} : { layers },
      training: { auxiliary: 0.01, recompute },
    });
  const compiled = (layers: readonly number[]) =>
    compileTraining(built(layers), {
      ...compileOptions({
        ...given,
        ...stagesOf(layers),
        ...forMachine(machine, { limits, tuning: given.tuning }),
      }),
      zero,
      dtype,
      loss: "loss",
      optimizer: adamw(),
      clipNorm: 1,
      ...microBatches > 1 ? { microBatches } : {},
    });
  const plan = await compiled(representatives.layers);
  const ranksOf = (plan: Plan, only?: readonly number[]) =>
    summarizeRanks(plan, {
      machine,
      times: () => 1,
      experts: [],
      ...only ? { only } : {},
    });
  let fullest = fullestOfStages(plan, ranksOf(plan));
  const fit = () =>
    fullest.every(({ bytes, limit = Infinity }) => bytes.total <= limit);
  const all: { plan: Plan; layers: number }[] = [];
  for (const added of furtherLayers(representatives, stageOf)) {
    // If some layers do not fit, all do not.
    if (!fit()) break;
    const more = await compiled(
      [...representatives.layers, ...added.map(({ layer }) => layer)]
        .sort((a, b) => a - b),
    );
    all.push({
      plan: more,
      layers: Math.max(...added.map(({ count }) => count)),
    });
    fullest = fullest.map((ranks) => {
      const own = added.find(({ stage }) => stage === ranks.stage);
      if (!own) return ranks;
      const [from, to] = [plan, more].map((plan) =>
        ranksOf(plan, [ranks.first])[0]!.bytes
      );
      const bytes = grownBy(ranks.bytes, own.count, { from: from!, to: to! });
      return { ...ranks, bytes };
    });
  }
  const { stage: _, ...most } = fullest
    .reduce((a, b) => b.bytes.total > a.bytes.total ? b : a);
  return {
    plan,
    grown: all,
    weights: {
      representatives,
      params: paramFacts(trace(built(representatives.layers))),
      storedAs: () => ({ name: dtype }),
    },
    fullest: {
      ...most,
      ...most.limit === undefined
        ? {}
        : { headroom: most.limit - most.bytes.total },
    },
  };
}

/** Of each pipeline stage, the ranks with the most memory. */
function fullestOfStages(
  { mesh }: Plan,
  ranks: readonly RankClass[],
): (RankClass & { readonly stage: number })[] {
  const axis = stageAxis(mesh);
  const fullest: (RankClass & { readonly stage: number })[] = [];
  for (const one of ranks) {
    const stage = axis ? groupRankOf(mesh, one.first, [axis.name]) : 0;
    const known = fullest[stage];
    if (known && known.bytes.total >= one.bytes.total) continue;
    fullest[stage] = { ...one, stage };
  }
  return fullest;
}

/** A layer beyond the representative ones, and the number of equal layers on its stage. */
interface FurtherLayer {
  readonly layer: number;
  readonly stage: number;
  readonly count: number;
}

/** One more layer of each represented kind: the first of each stage, then the second, and so on. */
function furtherLayers(
  { layers, of }: Representatives,
  stageOf: (layer: number) => number,
): FurtherLayer[][] {
  const further: FurtherLayer[][] = [];
  for (const representative of layers) {
    const [, layer, ...others] = of(representative);
    if (layer === undefined) continue;
    const stage = stageOf(layer);
    const at = further.findIndex((all) =>
      all.every((one) => one.stage !== stage)
    );
    (further[at < 0 ? further.length : at] ??= [])
      .push({ layer, stage, count: others.length + 1 });
  }
  return further;
}

/** Memory of ranks with more layers, each of which adds as much as the first. */
function grownBy(
  bytes: RankBytes,
  layers: number,
  { from, to }: { readonly from: RankBytes; readonly to: RankBytes },
): RankBytes {
  const grown = (of: keyof RankBytes) =>
    bytes[of] + layers * (to[of] - from[of]);
  return {
    weights: grown("weights"),
    state: grown("state"),
    scratch: grown("scratch"),
    staging: grown("staging"),
    total: grown("total"),
  };
}

/** Storage dtype of trained weights. Throws DataError for a dtype that cannot be trained. */
export function trainedDType(
  dtype: NonNullable<CompileRepresentativesOptions["dtype"]>,
): TrainedDType {
  if (dtype === "f32" || dtype === "f16" || dtype === "bf16") return dtype;
  throw new DataError(
    `Cannot train in ${dtype}: an optimizer changes each element. Give --dtype f32, f16 or bf16`,
  );
}
