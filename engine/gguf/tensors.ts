/** The tensors of a GGUF file under the names of a checkpoint. */

import type { TensorEntry } from "../../runtime/mod.ts";
import { type FileSource, readExactly } from "../../runtime/file_source.ts";
import { DataError } from "../../spec/errors.ts";
import { PACKED_ELEMENTS, type PackedElement } from "../../spec/packed.ts";
import { shown } from "../../spec/shown.ts";
import { type StoredMatrix, viewsOf } from "../encodings/matrix.ts";
import { architectureOf, checkpointName, type Keys } from "./architectures.ts";
import { type BlockType, isBlockType } from "./blocks.ts";
import type { GgufHeader, GgufTensor } from "./header.ts";

/** Tensors that follow from the keys. */
const HARMLESS = new Set(["rope_freqs.weight"]);

/** A matrix of a file: rows of blocks from an offset. */
interface BlockRows {
  readonly name: string;
  readonly param: string;
  readonly source: FileSource;
  readonly offset: number;
  readonly rows: number;
  readonly columns: number;
  readonly type: BlockType;
  /** Which row of the file each row is. Default: itself. */
  readonly rowOf?: ((row: number) => number) | undefined;
}

/** The tensors of a file. */
export function ggufTensors(
  path: string,
  source: FileSource,
  header: GgufHeader,
): TensorEntry[] {
  const { row, keys } = architectureOf(path, header);
  return header.tensors.flatMap((tensor): TensorEntry[] => {
    if (HARMLESS.has(tensor.name)) return [];
    const { name, interleaved, row: asRow } =
      checkpointName(row, tensor.name) ?? { name: tensor.name };
    const rowOf = interleaved && uninterleave(tensor, keys, interleaved);
    const shape = asRow ? [1, ...tensor.shape] : tensor.shape;
    if (!name.includes("{expert}")) {
      return entriesOf({ ...tensor, shape }, source, { name, rowOf });
    }
    const [experts = 0, ...rest] = shape;
    const bytes = tensor.bytes / experts;
    return Array.from({ length: experts }, (_, expert) =>
      entriesOf(
        {
          ...tensor,
          shape: rest,
          offset: tensor.offset + expert * bytes,
          bytes,
        },
        source,
        { name: name.replace("{expert}", String(expert)), rowOf },
      )).flat();
  });
}

/**
 * llama.cpp stores rows of queries and keys of some architectures so that rotated pairs follow each other; checkpoints have
 * the first halves of a head's pairs first.
 */
function uninterleave(
  { shape }: GgufTensor,
  { number }: Keys,
  key: "head_count" | "head_count_kv",
): (row: number) => number {
  const heads = number(`attention.${key}`) ?? 1;
  const width = shape[0]! / heads;
  return (row) => {
    const at = row % width;
    const pair = at % (width / 2);
    return row - at + 2 * pair + (at < width / 2 ? 0 : 1);
  };
}

/** A tensor as entries: as it is, or as views of its blocks. */
function entriesOf(
  { name: stored, shape, type, offset, bytes }: GgufTensor,
  source: FileSource,
  { name, rowOf }: {
    readonly name: string;
    readonly rowOf?: ((row: number) => number) | undefined;
  },
): TensorEntry[] {
  if (!isBlockType(type)) {
    const entry = { name, dtype: type.dtype, shape, source, offset, bytes };
    return [rowOf ? reordered(entry, rowOf) : entry];
  }
  const [columns = 1] = shape.slice(-1);
  const rows = shape.slice(0, -1).reduce((n, size) => n * size, 1);
  const matrix = blockMatrix({
    name: stored,
    param: name,
    source,
    offset,
    rows,
    columns,
    type,
    rowOf,
  });
  const [decoded, ...packed] = viewsOf(matrix);
  // A vector in blocks is only read as f32.
  return shape.length === 2 ? [decoded!, ...packed] : [{ ...decoded!, shape }];
}

/** An entry whose rows are in another order in the file. */
function reordered(
  entry: TensorEntry,
  rowOf: (row: number) => number,
): TensorEntry {
  const [rows = 1] = entry.shape;
  const each = entry.bytes / rows;
  return {
    ...entry,
    offset: 0,
    source: {
      name: entry.source.name,
      size: entry.bytes,
      read: async (offset, length) => {
        const begin = Math.floor(offset / each);
        const end = Math.ceil((offset + length) / each);
        const bytes = new Uint8Array((end - begin) * each);
        for (let row = begin; row < end; row++) {
          const from = entry.offset + rowOf(row) * each;
          bytes.set(
            await readExactly(entry.source, from, each),
            (row - begin) * each,
          );
        }
        const from = offset - begin * each;
        return bytes.subarray(from, from + length);
      },
    },
  };
}

/** A matrix in blocks, as codes, scales and offsets. */
function blockMatrix(
  { name, param, source, offset, rows, columns, type, rowOf }: BlockRows,
): StoredMatrix {
  const blocks = columns / type.elements;
  const rowBytes = blocks * type.bytes;
  const rawRows = async (begin: number, end: number): Promise<Uint8Array> => {
    if (!rowOf) {
      const from = offset + begin * rowBytes;
      return await readExactly(source, from, (end - begin) * rowBytes);
    }
    const raw = new Uint8Array((end - begin) * rowBytes);
    for (let row = begin; row < end; row++) {
      const from = offset + rowOf(row) * rowBytes;
      raw.set(
        await readExactly(source, from, rowBytes),
        (row - begin) * rowBytes,
      );
    }
    return raw;
  };
  const { offset: hasOffset }: PackedElement = PACKED_ELEMENTS[type.element];
  const groups = type.elements / type.group;
  return {
    param,
    of: [name],
    rows,
    columns,
    element: type.element,
    group: type.group,
    read: async (part, begin, end) => {
      const raw = await rawRows(begin, end);
      const count = (end - begin) * blocks;
      const codes = new Uint8Array(count * type.elements);
      const scales = new Float32Array(count * groups);
      const offsets = new Float32Array(hasOffset ? count * groups : 0);
      for (let i = 0; i < count; i++) {
        type.decode(raw.subarray(i * type.bytes, (i + 1) * type.bytes), {
          codes: codes.subarray(i * type.elements, (i + 1) * type.elements),
          scales: scales.subarray(i * groups, (i + 1) * groups),
          offsets: offsets.subarray(i * groups, (i + 1) * groups),
        });
      }
      const read = { codes, scales, offsets }[part];
      const bad = read.findIndex((value: number) => !Number.isFinite(value));
      if (bad < 0) return read;
      throw new DataError(
        `Cannot read tensor '${
          shown(name)
        }' of '${source.name}': a scale is not a finite number. Get the file again`,
      );
    },
  };
}
