/** Initial weights: random from a seed, as in published implementations. */

import {
  adaptedParameter,
  isTrained,
  type TrainedParameters,
} from "../../compiler/mod.ts";
import type { HostTensor } from "../../runtime/mod.ts";
import type { Plan } from "../../spec/plan/plan.ts";
import { randomNumbers } from "../generation/sampling.ts";
import type { Tensors } from "../run.ts";
import { sourceNames } from "../../spec/axis_parts.ts";

/** Options of random weights. */
export interface InitialOptions {
  readonly seed: number;
  /** Standard deviation of matrices, `initializer_range` of config.json. */
  readonly deviation: number;
  /** Parameters that are trained. Default: all. */
  readonly trained?: TrainedParameters | undefined;
}

/**
 * Every trained parameter of a plan: matrices are random, gains of norms are 1, biases 0. Adapters are initialized as
 * by PEFT: A uniformly up to 1 / sqrt(length of the contraction), B with 0.
 */
export function initialWeights(plan: Plan, options: InitialOptions): Tensors {
  const weights = plan.weights.filter(({ source }) =>
    isTrained(source, options.trained)
  );
  return Object.fromEntries(
    weights.flatMap((weight) =>
      sourceNames(plan, weight).map((name) => [
        name,
        initialTensor(name, weight.shape, options),
      ])
    ),
  );
}

function initialTensor(
  name: string,
  shape: readonly number[],
  { seed, deviation }: InitialOptions,
): HostTensor {
  const data = new Float32Array(shape.reduce((n, size) => n * size, 1));
  const adapter = adaptedParameter(name);
  if (/bias$/.test(name) || adapter?.matrix === "b") {
    return { dtype: "f32", shape, data };
  }
  // Each tensor has its own random stream, independent of the others.
  const random = randomNumbers(seed, hashOf(name));
  if (adapter) {
    const bound = 1 / Math.sqrt(shape.at(-1)!);
    data.forEach((_, i) => data[i] = bound * (2 * random() - 1));
  } else if (shape.length === 1) data.fill(1);
  else {
    for (let i = 0; i < data.length; i += 2) {
      const [size, angle] = [
        deviation * Math.sqrt(-2 * Math.log(1 - random())),
        2 * Math.PI * random(),
      ];
      data[i] = size * Math.cos(angle);
      if (i + 1 < data.length) data[i + 1] = size * Math.sin(angle);
    }
  }
  return { dtype: "f32", shape, data };
}

/** FNV-1a. */
function hashOf(text: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) {
    hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  }
  return hash >>> 0;
}
