/** Rollouts: samples of a policy with their log-probabilities, in continuous batches. */

import type { Session } from "../../runtime/mod.ts";
import type { Plan } from "../../spec/plan/plan.ts";
import { Batch } from "../generation/batch.ts";
import { Decoder, decoderShape } from "../generation/decoder.ts";
import type { Ending } from "../generation/sequence.ts";

/** A sampled response. */
export interface Rollout {
  readonly prompt: readonly number[];
  /** New tokens, including a stop token. */
  readonly tokens: readonly number[];
  /** The log-probability of each new token, and the entropy of its distribution in nats. */
  readonly logprobs: readonly number[];
  readonly entropies: readonly number[];
  readonly ending: Ending;
}

/** Options of rollouts. */
export interface RollOutOptions {
  readonly maxNewTokens: number;
  readonly stop: ReadonlySet<number>;
  /** Seed, and the random stream of the first prompt; each further prompt has the next one. */
  readonly seed: number;
  readonly stream: number;
}

/** Samples a response to each prompt, with temperature 1 from the entire vocabulary. */
export async function rollOut(
  { plan, session }: { readonly plan: Plan; readonly session: Session },
  prompts: readonly (readonly number[])[],
  { stream, ...options }: RollOutOptions,
): Promise<Rollout[]> {
  // Cached keys and values are those of earlier weights.
  session.reset();
  const batch = new Batch(new Decoder(session, decoderShape(plan)!));
  const sequences = prompts.map((prompt, i) =>
    batch.add(prompt, {
      ...options,
      temperature: 1,
      logprobs: 0,
      entropy: true,
      stream: stream + i,
    })
  );
  while (await batch.step());
  return sequences.map(({ prompt, tokens, logprobs, ending }) => ({
    prompt,
    tokens,
    logprobs: logprobs.map(({ logprob }) => logprob),
    entropies: logprobs.map(({ entropy = 0 }) => entropy),
    ending: ending!,
  }));
}

/**
 * Advantages relative to the samples of the same prompt: the reward minus its mean, divided by its standard deviation
 * (plus 1e-4). 0 if all rewards of a prompt are equal.
 *
 * @param rewards rewards in groups of `samples`
 */
export function groupAdvantages(
  rewards: readonly number[],
  samples: number,
): number[] {
  return rewards.map((reward, i) => {
    const first = i - i % samples;
    const group = rewards.slice(first, first + samples);
    const mean = meanOf(group);
    const deviation = deviationOf(group);
    return reward === mean ? 0 : (reward - mean) / (deviation + 1e-4);
  });
}

/** The mean of numbers. */
export function meanOf(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** The standard deviation of a sample of numbers; 0 for a single one. */
export function deviationOf(values: readonly number[]): number {
  const mean = meanOf(values);
  const squares = values.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  return Math.sqrt(squares / Math.max(1, values.length - 1));
}
