/** The plans beside a training with policy gradients: the rollouts and the initial model. */

import type { CacheDType, TrainedParameters } from "../../compiler/mod.ts";
import { tensorsInMemory } from "../../runtime/mod.ts";
import type { FileDType } from "../../spec/dtype.ts";
import type { MeshSizes } from "../../spec/mesh.ts";
import type { NumericsClass } from "../../spec/numerics.ts";
import type { Checkpoint } from "../checkpoint/checkpoint.ts";
import type { Companion } from "../companions.ts";
import type { FileSystem } from "../files.ts";
import { compileTarget, type PlanOptions } from "../open.ts";
import type { PolicyPrompt } from "./policy_rollouts.ts";
import { compileRollouts } from "./rollout_plan.ts";
import { storedIn, storedTensors, storedWeights } from "./stored.ts";
import type { Task } from "./task.ts";

/** Numerics of rollouts other than those of the training. */
export interface RolloutNumerics {
  readonly kvCacheDtype?: CacheDType;
  readonly numerics?: NumericsClass;
}

/** Maximum sequences in one batch of rollouts. Others wait. */
const MAX_SEQUENCES = 64;

/** The rollouts beside a training. */
export function rolloutCompanion(
  checkpoint: Checkpoint,
  { mesh, prompts, maxNewTokens, sampled, trained, weights, ...numerics }:
    & RolloutNumerics
    & {
      readonly trained: TrainedParameters | undefined;
      readonly weights: { readonly [tensor: string]: FileDType };
      readonly mesh: MeshSizes | undefined;
      readonly prompts: readonly PolicyPrompt[];
      readonly maxNewTokens: number;
      readonly sampled: number;
    },
): Companion {
  const longest = Math.max(...prompts.map(({ tokens }) => tokens.length)) +
    maxNewTokens;
  return {
    shares: true,
    plan: async (chosen, main) =>
      await compileRollouts({ kind: "checkpoint", checkpoint }, {
        training: main,
        trained,
        weights,
      }, {
        ...besideOf(chosen, mesh),
        ...numerics,
        need: {
          tokens: sampled * longest,
          sequences: Math.min(sampled, MAX_SEQUENCES),
          context: longest,
          lengths: new Array<number>(sampled).fill(longest),
        },
      }),
    // Trained weights are moved before the first rollouts.
    tensors: ({ tensors }) => Promise.resolve(tensors),
  };
}

/** The initial model beside a training. It shares the weights of a training that does not change them. */
export function referenceCompanion(
  folder: string,
  files: FileSystem,
  { model, shares }: Pick<Task, "model"> & Pick<Companion, "shares">,
): Companion {
  return {
    shares,
    plan: async (chosen) =>
      await compileTarget(
        { kind: "model", model },
        await storedIn(folder, files),
        besideOf(chosen, undefined),
      ),
    tensors: async (main, plan) =>
      shares ? main.tensors : tensorsInMemory(
        storedTensors(plan, (await storedWeights(folder, files))!),
        folder,
      ),
  };
}

/** Options for a plan on the devices of another one. */
function besideOf(
  { limits, tuning, numerics, mesh: trained }: PlanOptions,
  mesh: MeshSizes | undefined,
): PlanOptions {
  const of = mesh ?? trained;
  return {
    ...limits ? { limits } : {},
    ...tuning ? { tuning } : {},
    // Log-probabilities are compared with those of training.
    ...numerics ? { numerics, operands: "f32" } : {},
    ...of ? { mesh: of } : {},
  };
}
