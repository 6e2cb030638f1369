/** Vectors whose elements differ between checkpoints and files. */

import { readTensor, type TensorEntry } from "../../runtime/mod.ts";
import { rowSource } from "../encodings/matrix.ts";

/**
 * `gain`: the gain of a norm, stored minus 1 in checkpoints. `decay`, `rate`: -exp(A_log) and exp(A_log), of which
 * checkpoints have A_log.
 */
export type Values = "gain" | "decay" | "rate";

type Change = (x: number) => number;

const CHANGES: {
  readonly [values in Values]: {
    readonly read: Change;
    readonly write: Change;
  };
} = {
  gain: { read: (x) => x - 1, write: (x) => x + 1 },
  decay: { read: (x) => Math.log(-x), write: (x) => -Math.exp(x) },
  rate: { read: Math.log, write: Math.exp },
};

/** The number of elements of padded vectors in checkpoints is a multiple of this. */
const PADDING = 128;

/** Returns the number of elements of a padded vector in a checkpoint. */
export function paddedLength(length: number): number {
  return Math.ceil(length / PADDING) * PADDING;
}

/**
 * Returns a vector in f32 with the elements of a checkpoint (`read`) or of a file (`write`): the first `length`.
 * Missing ones are 0.
 */
export function withValues<T extends TensorEntry>(
  vector: T,
  { values, direction, length }: {
    readonly values: Values;
    readonly direction: "read" | "write";
    readonly length: number;
  },
): T {
  const change = CHANGES[values][direction];
  return computedVector(vector, length, async () => {
    const { data } = await readTensor(vector);
    const all = new Float32Array(length);
    all.set(Float32Array.from(data.subarray(0, length), change));
    return all;
  });
}

/** Returns a tensor with computed elements in f32. Its shape changes if their number does. */
export function computedVector<T extends TensorEntry>(
  { shape, ...vector }: T,
  length: number,
  read: () => Promise<Float32Array>,
): T {
  const source = rowSource(vector.source.name, {
    rows: 1,
    rowBytes: 4 * length,
    read: async () => new Uint8Array((await read()).buffer),
  });
  return {
    ...vector,
    shape: elementsOf(shape) === length ? shape : [length],
    dtype: "F32",
    source,
    offset: 0,
    bytes: source.size,
  } as TensorEntry as T;
}

/** Returns the number of elements of a shape. */
export function elementsOf(shape: readonly number[]): number {
  return shape.reduce((n, size) => n * size, 1);
}
