/** Parts of the tensors with all experts that some checkpoints have. */

import type { TensorEntry } from "../../runtime/mod.ts";
import { bytesIn, rowsOf } from "../encodings/read.ts";
import { rowSource } from "../encodings/matrix.ts";
import type { FusedTensor, GgufArchitecture } from "../gguf/architecture.ts";
import { withRows } from "../gguf/interleaved.ts";
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
  { valueHeads, latent }: Pick<HeadSizes, "valueHeads" | "latent">,
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
  const stack = isStacked ? tensor : { ...tensor, shape: [1, ...tensor.shape] };
  return Array.from({ length: stack.shape[0]! }, (_, expert) => {
    const read = matrixOf(rowsOf(stack, expert, expert + 1), found);
    return found.parts.map((part, i) => ({
      ...partOf(read, i, found.parts.length),
      name: `${layer}${part.replace("{expert}", String(expert))}`,
      dtype: tensor.dtype,
      quantizable: tensor.quantizable,
      table: tensor.table,
      ofExperts: isStacked,
      fused: { tensor: tensor.name, ...isStacked ? { expert } : {} },
    }));
  }).flat();
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
  const valueRows = withRows(
    tensor,
    (row) => Math.floor(row / values) * each + keys + row % values,
  );
  return [
    {
      ...transposedKeys(tensor, { keys, values }),
      name: `${start}k_b_proj.weight`,
    },
    {
      ...valueRows,
      name: `${start}v_b_proj.weight`,
      shape: [heads, values, latent],
      bytes: tensor.bytes / each * values,
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
  const [all = 1, ...rest] = tensor.shape;
  const part = (
    name: string,
    rows: number,
    rowOf: (row: number) => number,
  ): SourceTensor => {
    const reordered = withRows(tensor, rowOf);
    return {
      ...reordered,
      name: `${start}${name}.weight`,
      fused: { tensor: tensor.name },
      shape: [rows, ...rest],
      bytes: tensor.bytes / all * rows,
    };
  };
  return [
    part("in_proj_qkv", 2 * keys + keyHeads * values, mixed),
    part(
      "in_proj_z",
      keyHeads * values,
      (r) => at(r, 2 * keyDim + values, values),
    ),
  ];
}

/** The tensor of an expert: rows of equal length, in the order of the parts. */
interface Matrix {
  readonly rows: number;
  readonly shape: readonly number[];
  readonly rowBytes: number;
  readonly name: string;
  readonly interleaved: boolean;
  /** Copies row `row` to the start of `into`. */
  copy(row: number, into: Uint8Array): Promise<void>;
}

function matrixOf(
  tensor: TensorEntry,
  { interleaved, transposed }: FusedTensor,
): Matrix {
  const [, ...shape] = tensor.shape;
  const elementBytes = tensor.bytes / shape.reduce((n, size) => n * size, 1);
  const [height = 1, width = 1] = shape;
  const [rows, columns] = transposed ? [width, height] : [height, width];
  const name = tensor.source.name;
  // Parts of an expert are read one after another.
  let bytes: Promise<Uint8Array> | undefined;
  return {
    rows,
    shape: shape.length === 1 ? [] : [columns],
    rowBytes: columns * elementBytes,
    name,
    interleaved: interleaved === true,
    copy: async (row, into) => {
      const all = await (bytes ??= bytesIn(tensor));
      for (let i = 0; i < columns; i++) {
        const from = (transposed ? i * rows + row : row * columns + i) *
          elementBytes;
        into.set(all.subarray(from, from + elementBytes), i * elementBytes);
      }
    },
  };
}

function partOf(
  { rows, shape, rowBytes, name, interleaved, copy }: Matrix,
  part: number,
  parts: number,
) {
  const count = rows / parts;
  const source = rowSource(name, {
    rows: count,
    rowBytes,
    read: async (begin, end) => {
      const read = new Uint8Array((end - begin) * rowBytes);
      for (let row = begin; row < end; row++) {
        const from = interleaved ? row * parts + part : part * count + row;
        await copy(from, read.subarray((row - begin) * rowBytes));
      }
      return read;
    },
  });
  return {
    shape: [count, ...shape],
    source,
    offset: 0,
    bytes: count * rowBytes,
  };
}
