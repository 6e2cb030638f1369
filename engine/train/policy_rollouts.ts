/** Rollouts of policy gradients: groups of samples of each prompt, with their rewards. */

import { DataError, invariant } from "../../spec/errors.ts";
import { sum } from "../../spec/sum.ts";
import type { TrainedParameters } from "../../compiler/mod.ts";
import { randomNumbers } from "../generation/sampling.ts";
import type { Opened } from "../open.ts";
import type { Tokenizer } from "../text/tokenizer.ts";
import { moveWeights, weightBytes } from "./live_weights.ts";
import { groupAdvantages, type Rollout, rollOut } from "./rollouts.ts";
import type { Sample } from "./samples.ts";
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

/** Settings of rollouts. */
export interface GroupSettings {
  readonly prompts: readonly PolicyPrompt[];
  readonly reward: Reward;
  readonly tokenizer: Tokenizer;
  /** The trained parameters. Default: all. */
  readonly trained: TrainedParameters | undefined;
  /** Samples per prompt. */
  readonly samples: number;
  /** Samples of all prompts of a group of rollouts, a multiple of `samples`. */
  readonly sampled: number;
  readonly maxNewTokens: number;
  /** Token ids that end a sample. */
  readonly stop: ReadonlySet<number>;
  readonly seed: number;
}

/** A rewarded response as a sample. */
export interface Rewarded {
  readonly sample: Sample;
  readonly advantage: number;
  readonly rollout: Rollout;
}

/** Rollouts with the weights of the training at their time. */
export interface RolloutGroup {
  readonly rewarded: readonly Rewarded[];
  readonly rewards: readonly number[];
  readonly rollouts: readonly Rollout[];
  /** Bytes of weights that were moved to the plan of the rollouts. */
  readonly movedBytes: number;
}

/**
 * Moves the trained weights to the rollouts' plan, which is the first companion, and samples the responses of group
 * `at`. Rewards are computed on rank 0. Throws DataError for a reward that is not finite.
 */
export async function sampleGroup(
  opened: Opened,
  at: number,
  settings: GroupSettings,
): Promise<RolloutGroup> {
  const { trained, samples, sampled, maxNewTokens, stop, seed } = settings;
  const { companions: [rollouts] } = opened;
  const { moved } = weightBytes(opened.plan, rollouts!.plan, trained);
  const written = await moveWeights({ ...opened, trained }, rollouts!);
  const all = await opened.gatherTexts(String(written), "moving weights");
  const movedBytes = sum(all.map(Number));
  invariant(movedBytes === moved, "weights move as planned");
  const chosen = promptsOf(settings.prompts, {
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
  const scored = opened.rank === 0
    ? await rewardsOf(found, each, settings)
    : [];
  const [text] = await opened.gatherTexts(
    JSON.stringify(scored),
    "computing rewards",
  );
  const rewards = JSON.parse(text!) as readonly number[];
  const advantages = groupAdvantages(rewards, samples);
  const rewarded = found.map((rollout, i) => ({
    rollout,
    sample: sampleOf(rollout),
    advantage: advantages[i]!,
  }));
  return { rewarded, rewards, rollouts: found, movedBytes };
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
  { tokenizer, reward }: Pick<GroupSettings, "tokenizer" | "reward">,
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
