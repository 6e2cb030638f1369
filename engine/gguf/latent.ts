/** Keys and values of latent attention, which newer files have in two tensors, as `kv_b_proj` of a checkpoint. */

import { readTensor, type TensorEntry } from "../../runtime/mod.ts";
import { rowSource } from "../encodings/matrix.ts";
import { bytesIn, rowsOf } from "../encodings/read.ts";
import { withRead } from "./interleaved.ts";

/** The tensors of a layer, decoded: keys [head latent nope], values [head values latent]. */
export interface LatentParts {
  readonly keys: TensorEntry;
  readonly values: TensorEntry;
}

/** Returns `kv_b_proj`: for each head the rows of its keys, transposed, and then those of its values. */
export function joinedLatent(
  name: string,
  { keys, values }: LatentParts,
): TensorEntry {
  const [heads = 0, latent = 0, nope = 0] = keys.shape;
  const [, width = 0] = values.shape;
  const each = nope + width;
  const readHead = async (head: number): Promise<Float32Array> => {
    const [k, v] = await Promise.all(
      [keys, values].map(async (part) =>
        (await readTensor(rowsOf(part, head, head + 1))).data as Float32Array
      ),
    ) as [Float32Array, Float32Array];
    const rows = new Float32Array(each * latent);
    for (let row = 0; row < nope; row++) {
      for (let i = 0; i < latent; i++) {
        rows[row * latent + i] = k[i * nope + row]!;
      }
    }
    rows.set(v, nope * latent);
    return rows;
  };
  const source = rowSource(keys.source.name, {
    rows: heads,
    rowBytes: 4 * each * latent,
    read: async (begin, end) => {
      const all = new Float32Array((end - begin) * each * latent);
      for (let head = begin; head < end; head++) {
        all.set(await readHead(head), (head - begin) * each * latent);
      }
      return new Uint8Array(all.buffer);
    },
  });
  return {
    name,
    dtype: "F32",
    shape: [heads * each, latent],
    source,
    offset: 0,
    bytes: source.size,
    of: [keys, values].flatMap(({ name, of = [name] }) => of),
  };
}

/** Rows of the keys and of the values of a head in `kv_b_proj`. */
export interface LatentRows {
  readonly keys: number;
  readonly values: number;
}

/** Returns the keys of `kv_b_proj` [head latent keys]. */
export function transposedKeys<T extends TensorEntry>(
  tensor: T,
  { keys, values }: LatentRows,
): T {
  const [rows = 0, latent = 0] = tensor.shape;
  const each = keys + values;
  const heads = rows / each;
  const size = tensor.bytes / rows / latent;
  const transposed = {
    ...tensor,
    shape: [heads, latent, keys],
    bytes: tensor.bytes / each * keys,
  };
  return withRead(transposed, async ({ begin, end, rowBytes }) => {
    const all = new Uint8Array((end - begin) * rowBytes);
    for (let head = begin; head < end; head++) {
      const from = head * each;
      const found = await bytesIn(rowsOf(tensor, from, from + keys));
      for (let i = 0; i < latent * keys; i++) {
        const at = i % keys * latent + Math.floor(i / keys);
        const to = (head - begin) * latent * keys + i;
        all.set(found.subarray(at * size, (at + 1) * size), to * size);
      }
    }
    return all;
  });
}
