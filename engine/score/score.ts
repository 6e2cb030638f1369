/** Scores how well a model predicts texts, and its distance from another model. */

import type { HostTensor, Session } from "../../runtime/mod.ts";
import { DataError } from "../../spec/errors.ts";
import type { Decoder } from "../generation/decoder.ts";
import {
  checkTokens,
  packPrompts,
  slicePacked,
} from "../generation/packing.ts";
import { CHOICES } from "../replay.ts";
import { greedy, logNormalizer } from "../generation/sampling.ts";
import { type Mean, type Sampled, sampled } from "./mean.ts";
import { type Window, type WindowSizes, windowsOf } from "./windows.ts";

/** A decoder whose plan returns the logits of every token. */
export interface ScoredModel {
  readonly decoder: Decoder;
  readonly session: Pick<Session, "reset">;
}

/** Options of scoring. */
export interface ScoreOptions extends WindowSizes {
  /** Reference model for a comparison token by token. */
  readonly against?: ScoredModel;
  /** Called with the number of scored tokens. */
  readonly onProgress?: (done: number, total: number) => void;
}

/** Distance of a model from a reference. */
export interface Comparison {
  /** Cross-entropy of the reference, in nats per token. */
  readonly reference: Mean;
  /** Difference of the cross-entropies, token by token. Its error is smaller than theirs. */
  readonly change: Mean;
  /** Kullback-Leibler divergence of the model from the reference, in nats per token. */
  readonly divergence: Mean;
  /** Fraction of the tokens for which both prefer the same next token. */
  readonly sameToken: number;
  /** Fraction of the chosen experts that both choose. Undefined for models whose routers differ in size. */
  readonly sameExperts: number | undefined;
}

/** Prediction quality of a model. */
export interface Score {
  /** Cross-entropy, in nats per token. Perplexity is its exponential. */
  readonly nats: Mean;
  readonly comparison?: Comparison;
}

/** Perplexity and its standard error, from the cross-entropy in nats per token. */
export function perplexityOf(
  { mean, error }: Mean,
): { readonly value: number; readonly error: number } {
  const value = Math.exp(mean);
  return { value, error: value * error };
}

interface Totals {
  readonly nats: Sampled;
  readonly reference: Sampled;
  readonly change: Sampled;
  readonly divergence: Sampled;
  sameTokens: number;
  sameChoices: number;
  choices: number;
  comparable: boolean;
}

/** Scores texts given as token ids. Throws DataError if nothing can be scored, or if vocabularies differ. */
export async function scoreTexts(
  model: ScoredModel,
  texts: readonly (readonly number[])[],
  options: ScoreOptions,
): Promise<Score> {
  const { against, onProgress } = options;
  const { vocabulary } = model.decoder.shape;
  const other = against?.decoder.shape.vocabulary ?? vocabulary;
  if (other !== vocabulary) {
    throw new DataError(
      `Cannot compare the models: their vocabularies have ${vocabulary} and ${other} tokens. Compare models of one tokenizer`,
    );
  }
  const windows = texts.flatMap((text) => {
    checkTokens(text, vocabulary, (at) => `token ${at + 1} of a text`);
    return windowsOf(text.length, options).map((window) => ({ text, window }));
  });
  const total = windows.reduce(
    (sum, { window }) => sum + window.to - window.scored,
    0,
  );
  if (total === 0) {
    throw new DataError(
      "Cannot score the texts: they have fewer than two tokens. Give longer ones",
    );
  }
  const totals: Totals = {
    nats: sampled(),
    reference: sampled(),
    change: sampled(),
    divergence: sampled(),
    sameTokens: 0,
    sameChoices: 0,
    choices: 0,
    comparable: true,
  };
  let done = 0;
  for (const { text, window } of windows) {
    await scoreWindow(model, against, { text, window, totals });
    done += window.to - window.scored;
    onProgress?.(done, total);
  }
  const { nats, reference, change, divergence } = totals;
  const { sameTokens, sameChoices, choices, comparable } = totals;
  return {
    nats: nats.mean(),
    ...against
      ? {
        comparison: {
          reference: reference.mean(),
          change: change.mean(),
          divergence: divergence.mean(),
          sameToken: sameTokens / total,
          sameExperts: comparable && choices > 0
            ? sameChoices / choices
            : undefined,
        },
      }
      : {},
  };
}

async function scoreWindow(
  model: ScoredModel,
  against: ScoredModel | undefined,
  { text, window, totals }: {
    readonly text: readonly number[];
    readonly window: Window;
    readonly totals: Totals;
  },
): Promise<void> {
  const { from, scored, to } = window;
  const packed = packPrompts([text.slice(from, to - 1)]);
  model.session.reset();
  against?.session.reset();
  const step = Math.min(
    model.decoder.shape.maxTokens,
    against?.decoder.shape.maxTokens ?? Infinity,
  );
  for (let begin = from; begin < to - 1; begin += step) {
    const end = Math.min(begin + step, to - 1);
    const tokens = slicePacked(packed, begin - from, end - from);
    const found = await model.decoder.outputs(tokens);
    const other = await against?.decoder.outputs(tokens);
    for (let at = Math.max(begin, scored - 1); at < end; at++) {
      const row = at - begin;
      addToken(totals, {
        token: text[at + 1]!,
        logits: rowOf(found["logits"]!, row),
        reference: other && rowOf(other["logits"]!, row),
      });
      if (other) addChoices(totals, [found, other], row);
    }
  }
}

function rowOf({ data, shape }: HostTensor, row: number): Float32Array {
  const width = shape[1]!;
  return data.subarray(row * width, (row + 1) * width) as Float32Array;
}

function addToken(
  totals: Totals,
  { token, logits, reference }: {
    readonly token: number;
    readonly logits: Float32Array;
    readonly reference: Float32Array | undefined;
  },
): void {
  const normalizer = logNormalizer(logits);
  const nats = normalizer - logits[token]!;
  totals.nats.add(nats);
  if (!reference) return;
  const other = logNormalizer(reference);
  totals.reference.add(other - reference[token]!);
  totals.change.add(nats - (other - reference[token]!));
  let divergence = 0;
  for (let i = 0; i < logits.length; i++) {
    const logProbability = reference[i]! - other;
    divergence += Math.exp(logProbability) *
      (logProbability - (logits[i]! - normalizer));
  }
  // Rounding may give slightly negative values.
  totals.divergence.add(Math.max(0, divergence));
  if (greedy(logits) === greedy(reference)) totals.sameTokens++;
}

/** Counts the choices of experts of a token that two models share, over all routers. */
function addChoices(
  totals: Totals,
  [found, other]: readonly [Outputs, Outputs],
  row: number,
): void {
  for (const name of Object.keys(found)) {
    if (!CHOICES.test(name)) continue;
    const [mine, theirs] = [found[name]!, other[name]];
    if (theirs?.shape[1] !== mine.shape[1]) {
      totals.comparable = false;
      return;
    }
    const width = mine.shape[1]!;
    const experts = theirs!.data.subarray(row * width, (row + 1) * width);
    for (const expert of mine.data.subarray(row * width, (row + 1) * width)) {
      if (experts.includes(expert)) totals.sameChoices++;
    }
    totals.choices += width;
  }
}

type Outputs = { readonly [name: string]: HostTensor };
