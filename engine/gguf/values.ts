/** Vectors whose elements differ between checkpoints and files. */

import { readTensor, type TensorEntry } from "../../runtime/mod.ts";
import { rowSource } from "../encodings/matrix.ts";

/** `gain`: the gain of a norm, stored minus 1 in checkpoints. `decay`: -exp(A_log), of which checkpoints have A_log. */
export type Values = "gain" | "decay";

type Change = (x: number) => number;

const CHANGES: {
  readonly [values in Values]: {
    readonly read: Change;
    readonly write: Change;
  };
} = {
  gain: { read: (x) => x - 1, write: (x) => x + 1 },
  decay: { read: (x) => Math.log(-x), write: (x) => -Math.exp(x) },
};

/** Returns a vector in f32 with the elements of a checkpoint (`read`) or of a file (`write`). */
export function withValues<T extends TensorEntry>(
  vector: T,
  values: Values,
  direction: "read" | "write",
): T {
  const change = CHANGES[values][direction];
  const [length = 1] = vector.shape;
  const source = rowSource(vector.source.name, {
    rows: 1,
    rowBytes: 4 * length,
    read: async () => {
      const { data } = await readTensor(vector);
      return new Uint8Array(Float32Array.from(data, change).buffer);
    },
  });
  return { ...vector, dtype: "F32", source, offset: 0, bytes: source.size };
}
