/** Trains a checkpoint with policy gradients: samples responses, rewards them, and trains on them. */

import { DataError } from "../../spec/errors.ts";
import { MAX_AXIS } from "../../spec/limits.ts";
import type { MeshSizes } from "../../spec/mesh.ts";
import type { NumericsClass } from "../../spec/numerics.ts";
import {
  grpo,
  LOGPROBS,
  type PolicyLoss,
  policyObjective,
  scoringObjective,
} from "../../models/policy.ts";
import {
  type FamilyOption,
  openCheckpoint,
  openTokenizer,
} from "../checkpoint/checkpoint.ts";
import { configField } from "../checkpoint/config_field.ts";
import { sha256 } from "../digest.ts";
import type { FileSystem } from "../files.ts";
import { type AdapterParts, adapterParts } from "./adapter_parts.ts";
import { PolicyBatches } from "./policy_batches.ts";
import {
  referenceCompanion,
  rolloutCompanion,
  type RolloutNumerics,
} from "./policy_companions.ts";
import { PolicyMeter } from "./policy_metrics.ts";
import type { PolicyPrompt, Reward } from "./policy_rollouts.ts";
import { prepareFolder } from "./saved.ts";
import {
  type PolicySettings,
  textSettings,
  type TrainSettings,
} from "./settings.ts";
import { storedIn, storedWeights } from "./stored.ts";
import type { Task } from "./task.ts";

/** Data and options of policy gradients. */
export interface PolicyOptions
  extends TrainSettings, Partial<PolicySettings>, FamilyOption {
  readonly prompts: readonly PolicyPrompt[];
  readonly reward: Reward;
  /** Identity of the reward, such as the hash of its file. A resumed training must have the same. */
  readonly rewardIdentity?: string;
  /** A loss in the language, in place of that of `grpo`. `reference` is given if `kl` is set. */
  readonly loss?: PolicyLoss;
  /** Folder of the initial model, for `kl`. Default: the trained folder. */
  readonly reference?: string;
  /** Mesh of the rollouts. Default: that of the training. */
  readonly rolloutMesh?: MeshSizes;
  /** Numerics of training and rollouts. With `fast`, log-probabilities differ. Default: exact. */
  readonly numerics?: NumericsClass;
  /** Numerics of the rollouts other than those of the training: log-probabilities then differ. */
  readonly rolloutNumerics?: RolloutNumerics;
}

/** The task of policy gradients from a checkpoint folder. */
export async function policyTask(
  folder: string,
  files: FileSystem,
  options: PolicyOptions,
): Promise<Task> {
  const { batch, length, accumulate = 1, seed = 0, prompts } = options;
  const { samples = 8, maxNewTokens = 64, updates = 1, kl } = options;
  const { clip = 0.2, clipHigh } = options;
  const sampled = batch * accumulate * updates;
  check({ ...options, samples, maxNewTokens, sampled });
  const base = await openCheckpoint(folder, files, options);
  const { config, stop } = base;
  const texts = { tokenizer: folder, generation: folder };
  const { published, parts } = options.lora
    ? await adapterParts(folder, files, {
      ...options,
      lora: options.lora,
      seed,
      published: base.published,
      texts,
    })
    : {
      published: base.published,
      parts: {} as Partial<AdapterParts["parts"]>,
    };
  const { trained } = parts;
  const weights = await storedIn(folder, files, trained);
  const tokenizer = await openTokenizer(folder, files);
  if (!tokenizer) {
    throw new DataError(
      `Cannot reward texts: '${folder}' has no tokenizer.json. Copy one there`,
    );
  }
  const reference = kl === undefined ? undefined : options.reference ?? folder;
  const bounds = {
    maxTokens: batch * length,
    maxSequences: batch,
    maxContext: length,
  };
  const { balance, recompute } = options;
  const auxiliary = options.auxiliary ??
    Number(configField(config, "router_aux_loss_coef") ?? 0.01);
  const loss = options.loss ?? grpo({ clip, clipHigh, kl });
  const objective = policyObjective(loss, {
    reference: reference !== undefined,
  });
  const meter = new PolicyMeter({
    exact: options.rolloutNumerics === undefined &&
      options.numerics !== "fast",
  });
  const batches = new PolicyBatches(
    {
      prompts,
      reward: options.reward,
      tokenizer,
      trained,
      samples,
      sampled,
      maxNewTokens,
      stop,
      seed,
    },
    { batch, accumulate, updates },
    { meter },
  );
  return {
    model: published.build({
      ...bounds,
      training: { auxiliary, balance, recompute, objective },
    }),
    loss: "loss",
    settings: {
      ...textSettings({ ...options, seed, auxiliary }),
      samples,
      maxNewTokens,
      clip,
      updates,
      ...clipHigh === undefined ? {} : { clipHigh },
      ...kl === undefined ? {} : { kl },
    },
    weights,
    text: await sha256(
      JSON.stringify([prompts, options.rewardIdentity ?? null]),
    ),
    taken: batch * accumulate,
    validation: undefined,
    where: folder,
    initial: async () => (await storedWeights(folder, files))!,
    companions: [
      rolloutCompanion({ ...base, published }, {
        trained,
        weights,
        mesh: options.rolloutMesh,
        ...options.rolloutNumerics,
        prompts,
        maxNewTokens,
        sampled,
      }),
      ...reference === undefined ? [] : [
        referenceCompanion(reference, files, {
          shares: trained !== undefined && reference === folder,
          model: base.published.build({
            ...bounds,
            training: { auxiliary, objective: scoringObjective },
          }),
        }),
      ],
    ],
    outputs: [LOGPROBS],
    stepsPerSave: updates,
    begin: (opened) => batches.begin(opened),
    batch: async (index, target) => await batches.at(index, target),
    observe: (outputs) => meter.observe(outputs),
    prepare: (out, plan) =>
      prepareFolder(out, files, { config, ...texts }, plan),
    ...parts,
    close: () => {
      tokenizer.close();
      return Promise.resolve();
    },
  };
}

function check(
  { batch, length, samples, maxNewTokens, sampled, prompts }:
    & Pick<PolicyOptions, "batch" | "length" | "prompts">
    & {
      readonly samples: number;
      readonly maxNewTokens: number;
      readonly sampled: number;
    },
): void {
  if (prompts.length === 0) {
    throw new DataError(
      "Cannot sample responses: there is no prompt. Give some",
    );
  }
  if (samples < 2 || sampled % samples !== 0) {
    throw new DataError(
      `Cannot compare ${samples} samples of a prompt in steps of ${sampled} samples: expected at least 2, and a divisor of --batch times --accumulate times --updates. Change one of them`,
    );
  }
  if (batch * length > MAX_AXIS) {
    throw new DataError(
      `Cannot train on batches of ${
        batch * length
      } tokens: a step has at most ${MAX_AXIS}. Use smaller ones, and more of them with --accumulate`,
    );
  }
  const long = prompts.findIndex(({ tokens }) =>
    tokens.length + maxNewTokens - 1 > length
  );
  if (long < 0) return;
  throw new DataError(
    `Cannot train on prompt ${long + 1}: its ${
      prompts[long]!.tokens.length
    } tokens and ${maxNewTokens} new ones are more than ${length}. Raise --length, or lower --max-new-tokens`,
  );
}
