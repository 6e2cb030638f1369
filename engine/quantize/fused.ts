/** Parts of the tensors with all experts that some checkpoints have. */

import type { TensorEntry } from "../../runtime/mod.ts";
import { bytesIn, rowsOf } from "../encodings/read.ts";
import type { FusedTensor, GgufArchitecture } from "../gguf/architecture.ts";
import { withRead, withRows } from "../gguf/interleaved.ts";
import { type LatentRows, transposedKeys } from "../gguf/latent.ts";
import { inLayer } from "../gguf/names.ts";
import type { HeadSizes } from "./gguf_file.ts";
import type { ValueHeads } from "../gguf/value_heads.ts";
import type { SourceTensor } from "./source.ts";

/** A grouped projection of a delta net: queries, keys, values and gates of each key head. */
const GROUPED = /^(.*\.linear_attn\.)in_proj_qkvz\.weight$/;

/** Keys and values of latent attention in a layer. */
const LATENT = /^(self_attn\.|attention\.)kv_b_proj\.weight$/;

/**
 * The parts of a fused tensor: by expert, those of a grouped projection, or keys and values of latent attention. Other
 * tensors are returned unchanged.
 */
export function partsOf(
  tensor: SourceTensor,
  row: GgufArchitecture,
  { sizes: { valueHeads, latent }, held }: {
    readonly sizes: Pick<HeadSizes, "valueHeads" | "latent">;
    readonly held: Held;
  },
): SourceTensor[] {
  const [, start] = GROUPED.exec(tensor.name) ?? [];
  if (row.splitsProjections && start !== undefined) {
    return projections(tensor, start, valueHeads);
  }
  const { fused = {} } = row;
  const { start: layer, rest = "" } = inLayer(row, tensor.name) ?? {};
  const [, block] = LATENT.exec(rest) ?? [];
  if (row.latent === "split" && block !== undefined) {
    return latentParts(tensor, `${layer}${block}`, latent);
  }
  const found = Object.hasOwn(fused, rest) ? fused[rest]! : undefined;
  if (found === undefined) return [tensor];
  const isStacked = found.parts[0]!.includes("{expert}");
  const stack = isStacked ? tensor : {
    ...tensor,
    shape: [1, ...tensor.shape],
    ...tensor.blocks
      ? { blocks: { ...tensor.blocks, shape: [1, ...tensor.blocks.shape] } }
      : {},
  };
  const { blocks, stored: _, ...decoded } = stack;
  return Array.from({ length: stack.shape[0]! }, (_, expert) => {
    const own = matrixAt(decoded, expert);
    // The rows of packed matrices consist of contracted elements.
    const matrix = found.transposed && !tensor.packed
      ? transposed(own, held)
      : own;
    return found.parts.map((part, i): SourceTensor => ({
      ...decoded,
      ...partOf(matrix, i, found),
      ...blocks ? { blocks: partOf(matrixAt(blocks, expert), i, found) } : {},
      name: `${layer}${part.replace("{expert}", String(expert))}`,
      ofExperts: isStacked,
      fused: { tensor: tensor.name, ...isStacked ? { expert } : {} },
    }));
  }).flat();
}

/** A tensor of a stack, without the axis of the stack. */
function matrixAt<T extends TensorEntry>(stack: T, at: number): T {
  const { shape: [, ...shape], ...own } = rowsOf(stack, at, at + 1);
  return { ...stack, ...own, shape };
}

/** Keys, transposed, and values of latent attention. Both have an axis of heads. */
function latentParts(
  tensor: SourceTensor,
  start: string,
  { keys, values }: LatentRows,
): SourceTensor[] {
  const [rows = 0, latent = 0] = tensor.shape;
  const each = keys + values;
  const heads = rows / each;
  const { blocks: _, stored: __, ...decoded } = tensor;
  const valueRows = reordered(
    tensor,
    (row) => Math.floor(row / values) * each + keys + row % values,
    heads * values,
  );
  return [
    {
      ...transposedKeys(decoded, { keys, values }),
      name: `${start}k_b_proj.weight`,
    },
    {
      ...valueRows,
      name: `${start}v_b_proj.weight`,
      shape: [heads, values, latent],
      fused: { tensor: tensor.name },
    },
  ];
}

/** Queries, keys and values as one tensor, and gates as another. Each part has the rows of all heads. */
function projections(
  tensor: SourceTensor,
  start: string,
  { keyHeads, valueHeads, keyDim, valueDim }: ValueHeads,
): SourceTensor[] {
  const values = valueHeads / keyHeads * valueDim;
  const group = 2 * keyDim + 2 * values;
  /** Row r of the `width` rows of each group from `from` on. */
  const at = (r: number, from: number, width: number) =>
    Math.floor(r / width) * group + from + r % width;
  const keys = keyHeads * keyDim;
  const mixed = (r: number) =>
    r < keys
      ? at(r, 0, keyDim)
      : r < 2 * keys
      ? at(r - keys, keyDim, keyDim)
      : at(r - 2 * keys, 2 * keyDim, values);
  const part = (
    name: string,
    rows: number,
    rowOf: (row: number) => number,
  ): SourceTensor => ({
    ...reordered(tensor, rowOf, rows),
    name: `${start}${name}.weight`,
    fused: { tensor: tensor.name },
  });
  return [
    part("in_proj_qkv", 2 * keys + keyHeads * values, mixed),
    part(
      "in_proj_z",
      keyHeads * values,
      (r) => at(r, 2 * keyDim + values, values),
    ),
  ];
}

/** Returns `rows` rows of a tensor and of its blocks: row `row` is its row `rowOf(row)`. */
function reordered(
  { blocks, stored: _, ...tensor }: SourceTensor,
  rowOf: (row: number) => number,
  rows: number,
): SourceTensor {
  const rowsIn = <T extends TensorEntry>(of: T): T => {
    const [all = 1, ...rest] = of.shape;
    const part = withRows(of, rowOf);
    return { ...part, shape: [rows, ...rest], bytes: of.bytes / all * rows };
  };
  return {
    ...rowsIn(tensor),
    ...blocks ? { blocks: rowsIn(blocks) } : {},
  };
}

/** The transposed matrix that was read last. Its parts and pieces are read one after another. */
export interface Held {
  tensor?: TensorEntry;
  bytes?: Promise<Uint8Array>;
}

/** Returns part `part` of the tensor of an expert. Parts have equal numbers of rows. */
function partOf<T extends TensorEntry>(
  matrix: T,
  part: number,
  { parts, interleaved }: FusedTensor,
): T {
  const [rows = 1, ...rest] = matrix.shape;
  const count = rows / parts.length;
  if (!interleaved) {
    return { ...matrix, ...rowsOf(matrix, part * count, (part + 1) * count) };
  }
  const bytes = matrix.bytes / parts.length;
  const half = { ...matrix, shape: [count, ...rest], bytes };
  return withRead(half, async ({ begin, end, rowBytes }) => {
    const [first, last] = [begin, end].map((row) => row * parts.length);
    const all = await bytesIn(rowsOf(matrix, first!, last!));
    const read = new Uint8Array((end - begin) * rowBytes);
    for (let row = 0; row < end - begin; row++) {
      const from = (row * parts.length + part) * rowBytes;
      read.set(all.subarray(from, from + rowBytes), row * rowBytes);
    }
    return read;
  });
}

/** Returns a matrix with exchanged axes. */
function transposed(matrix: TensorEntry, held: Held): TensorEntry {
  const [height = 1, width = 1] = matrix.shape;
  const size = matrix.bytes / height / width;
  const exchanged = { ...matrix, shape: [width, height] };
  return withRead(exchanged, async ({ begin, end, rowBytes }) => {
    if (held.tensor !== matrix) {
      held.tensor = matrix;
      // Elements of a copy are aligned.
      held.bytes = bytesIn(matrix).then((bytes) => bytes.slice());
    }
    const all = elementsIn(await held.bytes!, size);
    const read = new Uint8Array((end - begin) * rowBytes);
    const into = elementsIn(read, size);
    for (let column = 0; column < height; column++) {
      for (let row = begin; row < end; row++) {
        into[(row - begin) * height + column] = all[column * width + row]!;
      }
    }
    return read;
  });
}

/** The elements of `size` bytes in aligned bytes. */
function elementsIn(
  { buffer, byteLength }: Uint8Array,
  size: number,
): Uint16Array | Uint32Array {
  return size === 2
    ? new Uint16Array(buffer, 0, byteLength / 2)
    : new Uint32Array(buffer, 0, byteLength / 4);
}
