/** Vectors of files that are the products of two vectors of a checkpoint: gains of a norm, and a row of scores. */

import { readTensor, type TensorEntry } from "../../runtime/mod.ts";
import { computedVector } from "./values.ts";

/** Endings of the two names. */
const [GAIN, SCORES] = ["_norm.weight", "_proj.weight"] as const;

/** Returns two vectors with a product: its elements as gains, and ones as scores. */
export function factorsOf<T extends TensorEntry>(product: T): readonly T[] {
  const [length = 1] = product.shape;
  const start = product.name.replace(/\.weight$/, "");
  const ones = () => Promise.resolve(new Float32Array(length).fill(1));
  return [
    { ...product, name: `${start}${GAIN}` },
    {
      ...computedVector(product, length, ones),
      name: `${start}${SCORES}`,
      shape: [1, length],
    },
  ];
}

/** Returns tensors with products in place of pairs, where files have the product. */
export function withProducts<T extends TensorEntry>(
  tensors: readonly T[],
  isProduct: (name: string) => boolean,
): readonly T[] {
  const found = new Map(tensors.map((tensor) => [tensor.name, tensor]));
  const productName = (name: string, ending: string) => {
    if (!name.endsWith(ending)) return undefined;
    const product = `${name.slice(0, -ending.length)}.weight`;
    return isProduct(product) ? product : undefined;
  };
  return tensors.flatMap((gain) => {
    if (productName(gain.name, SCORES) !== undefined) return [];
    const name = productName(gain.name, GAIN);
    const scores = found.get(gain.name.replace(GAIN, SCORES));
    if (name === undefined || scores === undefined) return [gain];
    const product = computedVector(gain, gain.shape[0]!, async () => {
      const [a, b] = [await readTensor(gain), await readTensor(scores)];
      return Float32Array.from(a.data, (x, i) => x * b.data[i]!);
    });
    return [{ ...product, name }];
  });
}
