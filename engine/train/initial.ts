/** Initial weights: random from a seed, as in published implementations. */

import type { HostTensor } from "../../runtime/mod.ts";
import type { Plan } from "../../spec/plan/plan.ts";
import { randomNumbers } from "../sampling.ts";
import type { Tensors } from "../run.ts";
import { sourceNames } from "../../spec/axis_parts.ts";

/** Options of random weights. */
export interface InitialOptions {
  readonly seed: number;
  /** Standard deviation of matrices, `initializer_range` of config.json. */
  readonly deviation: number;
}

/** Every parameter of a plan: matrices are random, gains of norms are 1, biases 0. */
export function initialWeights(plan: Plan, options: InitialOptions): Tensors {
  return Object.fromEntries(
    plan.weights.flatMap((weight) =>
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
  if (/bias$/.test(name)) return { dtype: "f32", shape, data };
  if (shape.length === 1) data.fill(1);
  else {
    // Each tensor has its own random stream, independent of the others.
    const random = randomNumbers(seed, hashOf(name));
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
