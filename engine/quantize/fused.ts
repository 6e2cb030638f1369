/** Parts of the tensors with all experts that some checkpoints have. */

import type { TensorEntry } from "../../runtime/mod.ts";
import { bytesIn, rowsOf } from "../encodings/read.ts";
import { rowSource } from "../encodings/matrix.ts";
import type { FusedTensor, GgufArchitecture } from "../gguf/architectures.ts";
import type { SourceTensor } from "./source.ts";

/** The parts of a fused tensor, by expert. Other tensors are returned unchanged. */
export function partsOf(
  tensor: SourceTensor,
  { fused = {} }: GgufArchitecture,
): SourceTensor[] {
  const [, layer, name = ""] =
    /^(model\.layers\.\d+\.)(.+)$/.exec(tensor.name) ??
      [];
  const found = Object.hasOwn(fused, name) ? fused[name]! : undefined;
  if (found === undefined) return [tensor];
  const [experts = 0] = tensor.shape;
  return Array.from({ length: experts }, (_, expert) => {
    const read = matrixOf(rowsOf(tensor, expert, expert + 1), found);
    return found.parts.map((part, i) => ({
      ...partOf(read, i, found.parts.length),
      name: `${layer}${part.replace("{expert}", String(expert))}`,
      dtype: tensor.dtype,
      quantizable: tensor.quantizable,
      table: tensor.table,
      ofExperts: true,
    }));
  }).flat();
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
