/** Trains a checkpoint with policy gradients: samples responses, rewards them, and trains on them. */

import { DataError, invariant } from "../../spec/errors.ts";
import { MAX_AXIS } from "../../spec/limits.ts";
import type { NumericsClass } from "../../spec/numerics.ts";
import type { FileDType } from "../../spec/dtype.ts";
import type { MeshSizes } from "../../spec/mesh.ts";
import type { Program } from "../../spec/plan/plan.ts";
import type { CacheDType, TrainedParameters } from "../../compiler/mod.ts";
import { type AdapterParts, adapterParts } from "./adapter_parts.ts";
import {
  grpo,
  LOGPROBS,
  POLICY_INPUTS,
  type PolicyLoss,
  policyObjective,
  scoringObjective,
} from "../../models/policy.ts";
import {
  type Checkpoint,
  type FamilyOption,
  openCheckpoint,
  openTokenizer,
} from "../checkpoint/checkpoint.ts";
import { configField } from "../checkpoint/config_field.ts";
import { sha256 } from "../digest.ts";
import type { FileSystem } from "../files.ts";
import type { Companion, OpenedCompanion } from "../companions.ts";
import { sum } from "../../spec/sum.ts";
import { compileTarget, type Opened, type PlanOptions } from "../open.ts";
import { tensorsInMemory } from "../../runtime/mod.ts";
import type { Tensors } from "../run.ts";
import { randomNumbers } from "../generation/sampling.ts";
import type { Tokenizer } from "../text/tokenizer.ts";
import { moveWeights, weightBytes } from "./live_weights.ts";
import { PolicyMeter, type PolicyMetrics } from "./policy_metrics.ts";
import { compileRollouts } from "./rollout_plan.ts";
import { groupAdvantages, type Rollout, rollOut } from "./rollouts.ts";
import { inputsOf, type Sample } from "./samples.ts";
import { prepareFolder } from "./saved.ts";
import {
  type PolicySettings,
  textSettings,
  type TrainSettings,
} from "./settings.ts";
import { storedIn, storedTensors, storedWeights } from "./stored.ts";
import type { Task } from "./task.ts";
import { shuffled } from "./text.ts";

/** Rewards the text of a response to a prompt. Larger is better. */
export type Reward = (
  prompt: string,
  text: string,
) => number | Promise<number>;

/** A prompt. */
export interface PolicyPrompt {
  /** Its text, for the reward. */
  readonly text: string;
  readonly tokens: readonly number[];
}

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
  readonly rolloutNumerics?: {
    readonly kvCacheDtype?: CacheDType;
    readonly numerics?: NumericsClass;
  };
}

/** Maximum sequences in one batch of rollouts. Others wait. */
const MAX_SEQUENCES = 64;

/** A rewarded response as a sample. */
interface Rewarded {
  readonly sample: Sample;
  readonly advantage: number;
  readonly rollout: Rollout;
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
  const micro = accumulate * updates;
  const sampled = batch * micro;
  check({ ...options, samples, maxNewTokens, sampled });
  const { lora } = options;
  const base = await openCheckpoint(folder, files, options);
  const { config, stop } = base;
  const texts = { tokenizer: folder, generation: folder };
  const { published, parts } = lora
    ? await adapterParts(folder, files, {
      ...options,
      lora,
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
  let opened: Opened | undefined;
  let group = -1;
  let rewarded: readonly Rewarded[] = [];

  const rollOutGroup = async (at: number) => {
    const { companions: [rollouts] } = opened!;
    const { moved } = weightBytes(opened!.plan, rollouts!.plan, trained);
    const written = await moveWeights({ ...opened!, trained }, rollouts!);
    const all = await opened!.gatherTexts(String(written), "moving weights");
    const movedBytes = sum(all.map(Number));
    invariant(movedBytes === moved, "weights move as planned");
    const chosen = promptsOf(prompts, {
      first: at * sampled / samples,
      count: sampled / samples,
      seed,
    });
    const each = chosen.flatMap((prompt) =>
      new Array<PolicyPrompt>(samples).fill(prompt)
    );
    const found = await rollOut(rollouts!, each.map(({ tokens }) => tokens), {
      maxNewTokens,
      stop,
      seed,
      stream: at * sampled,
    });
    // Rewards may differ between processes.
    const scored = opened!.rank === 0
      ? await rewardsOf(found, each, { tokenizer, reward: options.reward })
      : [];
    const [text] = await opened!.gatherTexts(
      JSON.stringify(scored),
      "computing rewards",
    );
    const rewards = JSON.parse(text!) as readonly number[];
    const advantages = groupAdvantages(rewards, samples);
    rewarded = found.map((rollout, i) => ({
      rollout,
      sample: sampleOf(rollout),
      advantage: advantages[i]!,
    }));
    group = at;
    meter.begin({ rewards, rollouts: found, movedBytes });
  };

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
    begin: (pair) => {
      opened = pair;
    },
    batch: async (index, { program }) => {
      const at = Math.floor(index / micro);
      if (at !== group) await rollOutGroup(at);
      const first = index % micro * batch;
      const some = rewarded.slice(first, first + batch);
      const inputs = policyInputs(some);
      meter.give(inputs, { onPolicy: index % micro < accumulate });
      const [, initial] = opened!.companions;
      const counted = some.reduce(
        (n, { rollout }) => n + rollout.tokens.length,
        0,
      );
      return {
        // A loss need not use all inputs.
        inputs: inputsFor(
          program,
          initial ? await withReference(inputs, initial) : inputs,
        ),
        counted,
        tokens: inputs["ids"]!.data.length,
      };
    },
    observe: (outputs): PolicyMetrics => meter.observe(outputs),
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

/** The prompts of a step: all in a random order, then all in another one. */
function promptsOf(
  prompts: readonly PolicyPrompt[],
  { first, count, seed }: {
    readonly first: number;
    readonly count: number;
    readonly seed: number;
  },
): PolicyPrompt[] {
  return Array.from({ length: count }, (_, i) => {
    const round = Math.floor((first + i) / prompts.length);
    const order = shuffled(prompts.length, randomNumbers(seed, -1 - round));
    return prompts[order[(first + i) % prompts.length]!]!;
  });
}

async function rewardsOf(
  rollouts: readonly Rollout[],
  prompts: readonly PolicyPrompt[],
  { tokenizer, reward }: {
    readonly tokenizer: Tokenizer;
    readonly reward: Reward;
  },
): Promise<number[]> {
  return await Promise.all(rollouts.map(async ({ tokens }, i) => {
    const { text } = prompts[i]!;
    const found = await reward(text, await tokenizer.decode(tokens));
    if (Number.isFinite(found)) return found;
    throw new DataError(
      `Cannot use the reward of a response to ${
        JSON.stringify(text)
      }: it is ${found}. Return a finite number`,
    );
  }));
}

function sampleOf({ prompt, tokens }: Rollout): Sample {
  const ids = Int32Array.from([...prompt, ...tokens]);
  const weights = new Float32Array(ids.length).fill(1, prompt.length);
  return { ids, weights };
}

/** Inputs of the training, except for log-probabilities of the initial model. */
function policyInputs(rewarded: readonly Rewarded[]): Tensors {
  const inputs = inputsOf(rewarded.map(({ sample }) => sample), {
    weighted: true,
  });
  const count = inputs["ids"]!.data.length;
  const [old, advantages] = [new Float32Array(count), new Float32Array(count)];
  let at = 0;
  for (const { rollout, advantage, sample } of rewarded) {
    const first = at + rollout.prompt.length - 1;
    at += sample.ids.length - 1;
    old.set(rollout.logprobs, first);
    advantages.fill(advantage, first, at);
  }
  const column = (data: Float32Array) =>
    ({ dtype: "f32", shape: [count], data }) as const;
  return {
    ...inputs,
    [POLICY_INPUTS.old]: column(old),
    [POLICY_INPUTS.advantages]: column(advantages),
  };
}

/** The inputs that a program has. */
function inputsFor({ inputs: ports }: Program, inputs: Tensors): Tensors {
  return Object.fromEntries(
    Object.entries(inputs).filter(([input]) => input in ports),
  );
}

async function withReference(
  inputs: Tensors,
  { plan, session }: OpenedCompanion,
): Promise<Tensors> {
  const program = plan.programs[0]!;
  const given = inputsFor(program, inputs);
  const { [LOGPROBS]: logprobs } = await session.run(program.name, given, {
    outputs: [LOGPROBS],
    everywhere: true,
    fresh: true,
  });
  return { ...inputs, [POLICY_INPUTS.reference]: logprobs! };
}

/** The rollouts beside a training. */
function rolloutCompanion(
  checkpoint: Checkpoint,
  { mesh, prompts, maxNewTokens, sampled, trained, weights, ...numerics }:
    & NonNullable<PolicyOptions["rolloutNumerics"]>
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

/** The initial model beside a training. It shares the weights of a training that does not change them. */
function referenceCompanion(
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
