/** Samples of different lengths as training data: packed into batches, each attending only to itself. */

import { integers } from "../generation/packing.ts";
import { randomNumbers } from "../generation/sampling.ts";
import type { Tensors } from "../run.ts";
import { shuffled } from "./text.ts";

/** Tokens, and the weight of each in the loss when it is predicted; 0: it is not trained. */
export interface Sample {
  readonly ids: Int32Array;
  readonly weights: Float32Array;
}

/** Sizes of batches. */
export interface BatchSizes {
  /** Maximum tokens of a batch, and samples. */
  readonly tokens: number;
  readonly sequences: number;
  /** Seed of the order of samples. */
  readonly seed: number;
}

/** Samples in batches. Each epoch has its own order, in which batches are filled one after another. */
export class SampleBatches {
  readonly #samples: readonly Sample[];
  readonly #sizes: BatchSizes;
  /** The batches of each epoch, as indices of samples. */
  readonly #epochs: (readonly (readonly number[])[])[] = [];

  constructor(samples: readonly Sample[], sizes: BatchSizes) {
    this.#samples = samples;
    this.#sizes = sizes;
  }

  /** Batches of the first epochs. */
  count(epochs: number): number {
    let count = 0;
    for (let epoch = 0; epoch < epochs; epoch++) {
      count += this.#batchesOf(epoch).length;
    }
    return count;
  }

  /** Batch `index` over all epochs. */
  at(index: number): Sample[] {
    let [epoch, first] = [0, 0];
    for (;;) {
      const batches = this.#batchesOf(epoch);
      const batch = batches[index - first];
      if (batch) return batch.map((i) => this.#samples[i]!);
      first += batches.length;
      epoch++;
    }
  }

  #batchesOf(epoch: number): readonly (readonly number[])[] {
    return this.#epochs[epoch] ??= this.#fill(
      shuffled(
        this.#samples.length,
        randomNumbers(this.#sizes.seed, epoch),
      ),
    );
  }

  #fill(order: Int32Array): number[][] {
    const batches: number[][] = [];
    let used = Infinity;
    for (const i of order) {
      const length = this.#samples[i]!.ids.length - 1;
      const last = batches.at(-1);
      const fits = used + length <= this.#sizes.tokens &&
        last!.length < this.#sizes.sequences;
      if (fits) last!.push(i);
      else batches.push([i]);
      used = fits ? used + length : length;
    }
    return batches;
  }
}

/**
 * Samples as inputs of a decoder that is trained: `ids`, `sequence`, `position` and `labels`, which are -100 for tokens
 * that are not trained; with `weighted`, also the weights of labels. The last token of a sample is only a label.
 */
export function inputsOf(
  samples: readonly Sample[],
  { weighted }: { readonly weighted: boolean },
): Tensors {
  const count = samples.reduce((n, { ids }) => n + ids.length - 1, 0);
  const column = () => new Int32Array(count);
  const [ids, sequence, position] = [column(), column(), column()];
  const labels = column();
  const weights = new Float32Array(count);
  let at = 0;
  for (const [i, sample] of samples.entries()) {
    const length = sample.ids.length - 1;
    ids.set(sample.ids.subarray(0, length), at);
    weights.set(sample.weights.subarray(1), at);
    sequence.fill(i, at, at + length);
    for (let j = 0; j < length; j++) {
      position[at + j] = j;
      labels[at + j] = sample.weights[j + 1]! > 0 ? sample.ids[j + 1]! : -100;
    }
    at += length;
  }
  return {
    ids: integers(ids),
    sequence: integers(sequence),
    position: integers(position),
    labels: integers(labels),
    ...weighted
      ? { weights: { dtype: "f32", shape: [count], data: weights } }
      : {},
  };
}

/** Sum of the weights of all labels. */
export function weightOf(samples: readonly Sample[]): number {
  return samples.reduce(
    (sum, { weights }) => weights.subarray(1).reduce((n, w) => n + w, sum),
    0,
  );
}
