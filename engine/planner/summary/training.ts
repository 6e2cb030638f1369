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
import {
  type CompileRepresentativesOptions,
  forMachine,
  type ModelTarget,
  representativesOf,
} from "./compiled.ts";
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
}

/**
 * A plan of representative layers, and the memory of the fullest ranks with all layers, or a lower bound if it does not
 * fit.
 */
export interface TrainingRepresentatives {
  readonly plan: Plan;
  readonly weights: ModelWeights;
  readonly fullest: RankClass;
  /** Plans with one more layer, and the number of equal layers. Empty if the plan does not fit. */
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
  const { zero = 0, recompute = false } = given;
  if (target.kind === "model") {
    throw new DataError(
      "Cannot plan the training of a model file by kinds of layers: equal layers are known only for published models. Give a config.json",
    );
  }
  const { published } = target.kind === "checkpoint"
    ? target.checkpoint
    : target.configuration;
  const dtype = asked === undefined ? "bf16" : trainedDType(asked);
  const { representatives } = representativesOf(target);
  const built = (layers: readonly number[]) =>
    published.build({
      ...bounds,
      layers,
      training: { auxiliary: 0.01, recompute },
    });
  const compiled = (layers: readonly number[]) =>
    compileTraining(built(layers), {
      ...compileOptions({
        ...given,
        ...forMachine(machine, { limits, tuning: given.tuning }),
      }),
      zero,
      dtype,
      loss: "loss",
      optimizer: adamw(),
      clipNorm: 1,
    });
  const plan = await compiled(representatives.layers);
  const holding = { machine, times: () => 1, experts: [] };
  const ranksOf = (plan: Plan, only?: readonly number[]) =>
    summarizeRanks(plan, {
      ...holding,
      ...only ? { only } : {},
    });
  const fullest = ranksOf(plan)
    .reduce((a, b) => b.bytes.total > a.bytes.total ? b : a);
  const all: { plan: Plan; layers: number }[] = [];
  let { bytes } = fullest;
  const { limit } = fullest;
  for (const layer of representatives.layers) {
    // If some layers do not fit, all do not.
    if (limit !== undefined && bytes.total > limit) break;
    const [, another, ...others] = representatives.of(layer);
    if (another === undefined) continue;
    const more = await compiled(
      [...representatives.layers, another].sort((a, b) => a - b),
    );
    const [grown] = ranksOf(more, [fullest.first]);
    all.push({ plan: more, layers: others.length + 1 });
    bytes = grownBy(bytes, others.length + 1, {
      from: fullest.bytes,
      to: grown!.bytes,
    });
  }
  return {
    plan,
    grown: all,
    weights: {
      representatives,
      params: paramFacts(trace(built(representatives.layers))),
      storedAs: () => ({ name: dtype }),
    },
    fullest: {
      ...fullest,
      bytes,
      ...limit === undefined ? {} : { headroom: limit - bytes.total },
    },
  };
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
