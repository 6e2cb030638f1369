/** A step of training compiled by layers that stand for others. */

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
  type CompileStandInsOptions,
  forMachine,
  type ModelTarget,
  standInsOf,
} from "./compiled.ts";
import { summarizeRanks } from "./ranks.ts";
import type { ModelWeights } from "./weights.ts";
import type { Bounds } from "../../../models/mod.ts";

/** How a step of training is compiled for a machine. */
export interface CompileTrainingStandInsOptions
  extends Omit<CompileStandInsOptions, "bounds"> {
  readonly bounds: Bounds;
  readonly zero?: ZeroStage;
  /** Compute what is inside attention and experts a second time. Default: it is kept. */
  readonly recompute?: boolean;
}

/** A plan of the layers that stand for others, and what the fullest ranks of all layers hold, or at least hold where it does not fit. */
export interface TrainingStandIns {
  readonly plan: Plan;
  readonly weights: ModelWeights;
  readonly fullest: RankClass;
  /** Plans with one layer more, and how many layers are equal to that one; none where the plan does not fit. */
  readonly grown: readonly { readonly plan: Plan; readonly layers: number }[];
}

/**
 * Compile a step of training a published model by AdamW, its gradients clipped. What is kept for gradients grows with each
 * layer, by how much a plan with one more of a kind shows: weights and states exactly, scratch memory to some percent, as it
 * is shared in another way. Throws DataError for a dtype that is not trained in.
 */
export async function compileTrainingStandIns(
  target: ModelTarget,
  options: CompileTrainingStandInsOptions,
): Promise<TrainingStandIns> {
  const { machine, limits, dtype: asked, bounds, ...given } = options;
  const { zero = 0, recompute = false } = given;
  if (target.kind === "model") {
    throw new DataError(
      "Cannot plan the training of a model file by kinds of layers: only a published model says which layers are equal. Give a config.json",
    );
  }
  const { published } = target.kind === "checkpoint"
    ? target.checkpoint
    : target.configuration;
  const dtype = asked === undefined ? "bf16" : trainedDType(asked);
  const stands = standInsOf(target);
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
  const plan = await compiled(stands.layers);
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
  for (const layer of stands.layers) {
    // What does not fit with some layers does not with all.
    if (limit !== undefined && bytes.total > limit) break;
    const [, another, ...others] = stands.of(layer);
    if (another === undefined) continue;
    const more = await compiled(
      [...stands.layers, another].sort((a, b) => a - b),
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
      stands,
      params: paramFacts(trace(built(stands.layers))),
      storedAs: () => ({ name: dtype }),
    },
    fullest: {
      ...fullest,
      bytes,
      ...limit === undefined ? {} : { headroom: limit - bytes.total },
    },
  };
}

/** What ranks hold with so many more layers, each of which adds as much as the first. */
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

/** What weights are stored in. Throws DataError for a dtype that cannot be trained in. */
export function trainedDType(
  dtype: NonNullable<CompileStandInsOptions["dtype"]>,
): TrainedDType {
  if (dtype === "f32" || dtype === "f16" || dtype === "bf16") return dtype;
  throw new DataError(
    `Cannot train in ${dtype}: an optimizer changes each element. Give --dtype f32, f16 or bf16`,
  );
}
