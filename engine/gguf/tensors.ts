/** The tensors of a GGUF file under checkpoint names. */

import type { TensorEntry } from "../../runtime/mod.ts";
import {
  type FileSource,
  readExactly,
} from "../../runtime/weights/file_source.ts";
import { isAllowedScale } from "../../spec/weights/activations.ts";
import { DataError } from "../../spec/errors.ts";
import {
  PACKED_ELEMENTS,
  type PackedElement,
} from "../../spec/weights/packed.ts";
import { BLOCKS } from "../../spec/weights/blocks.ts";
import { shown } from "../../spec/shown.ts";
import { rearrangement } from "../../spec/weights/word_blocks.ts";
import { type Parts, type StoredMatrix, viewsOf } from "../encodings/matrix.ts";
import type { TensorName } from "./architecture.ts";
import { architectureOf } from "./architectures.ts";
import { type BlockType, isBlockType } from "./blocks.ts";
import { joinedLatent } from "./latent.ts";
import { uninterleavedRow, withRows } from "./interleaved.ts";
import {
  type GgufHeader,
  type GgufKeys,
  type GgufTensor,
  layerCount,
  maxOf,
  numberOf,
} from "./header.ts";
import { checkpointName, moduleName, namesPredictor } from "./names.ts";
import {
  hasHeads,
  type Tiled,
  tiledHead,
  type ValueHeads,
  withHeads,
} from "./value_heads.ts";
import { factorsOf } from "./products.ts";
import { elementsOf, paddedLength, withValues } from "./values.ts";

/** Tensors that predict further tokens and have no name in checkpoints, such as copies of the embeddings. */
const HARMLESS = /\.nextn\./;

/** A matrix of a file: rows of blocks from an offset. */
interface BlockRows {
  readonly name: string;
  readonly param: string;
  readonly source: FileSource;
  readonly offset: number;
  readonly rows: number;
  readonly columns: number;
  readonly type: BlockType;
}

/** The tensors of a file as stored, under its names. */
export function storedTensors(
  source: FileSource,
  tensors: readonly GgufTensor[],
): TensorEntry[] {
  return tensors.map(({ name, shape, type, offset, bytes }) => {
    const dtype = isBlockType(type) ? type.block : type.dtype;
    return { name, dtype, shape, source, offset, bytes };
  });
}

/** The tensors of a file under checkpoint names, with the views of blocks. */
export function ggufTensors(
  path: string,
  source: FileSource,
  header: GgufHeader,
): TensorEntry[] {
  const { name: architecture, row } = architectureOf(path, header);
  const layers = layerCount(architecture, header.keys);
  const names = new Set(
    header.tensors.map(({ name }) => checkpointName(row, name)?.name),
  );
  const entries = header.tensors.flatMap((tensor): TensorEntry[] => {
    const known = checkpointName(row, tensor.name, (name) => names.has(name));
    const layer = Number(/^blk\.(\d+)\./.exec(tensor.name)?.[1]);
    const isUnused = !known && HARMLESS.test(tensor.name) ||
      row.unused?.includes(tensor.name) ||
      layer >= layers && !namesPredictor(row);
    if (isUnused) return [];
    const entry: TensorName = known ?? { name: tensor.name };
    const { interleaved, values, tiled, padded } = entry;
    const name = moduleName(row, entry.name, layers);
    const rowOf = interleaved && uninterleave(path, tensor, {
      heads: maxOf(header.keys, `${architecture}.attention.${interleaved}`) ??
        1,
    });
    const shape = checkpointShape(entry, tensor.shape);
    if (!name.includes("{expert}")) {
      const found = entriesOf({ ...tensor, shape }, source, {
        name,
        rowOf,
        tiled: tiled && {
          tiled,
          heads: valueHeads(path, tensor, {
            architecture,
            keys: header.keys,
            tiled,
          }),
        },
      });
      if (entry.product) return [...factorsOf(found[0]!)];
      if (!values) return found;
      const elements = elementsOf(shape);
      const length = padded ? paddedLength(elements) : elements;
      return [withValues(found[0]!, { values, direction: "read", length })];
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
  return row.latent ? withLatent(entries) : entries;
}

/** The shape in a checkpoint of a tensor with a shape in a file. */
function checkpointShape(
  { row, middle, axes, filed }: TensorName,
  stored: readonly number[],
): readonly number[] {
  if (row) return [1, ...stored];
  if (axes) {
    return axes.map((size) => size < 0 ? elementsOf(stored) : size);
  }
  if (filed) return [elementsOf(stored)];
  // llama.cpp leaves out the outermost of four axes if it is 1.
  const shape = stored.length === 4 && stored[0] === 1
    ? stored.slice(1)
    : stored;
  return middle && shape.length > 1 ? [shape[0]!, 1, ...shape.slice(1)] : shape;
}

/** The sizes of delta nets. Throws DataError if a tensor does not have them. */
function valueHeads(
  path: string,
  { name, shape }: GgufTensor,
  { architecture, keys, tiled }: {
    readonly architecture: string;
    readonly keys: GgufKeys;
    readonly tiled: Tiled;
  },
): ValueHeads {
  const number = (key: string) =>
    numberOf(keys, `${architecture}.ssm.${key}`) ?? NaN;
  const values = number("time_step_rank");
  const heads = {
    keyHeads: number("group_count"),
    valueHeads: values,
    keyDim: number("state_size"),
    valueDim: number("inner_size") / values,
  };
  if (hasHeads(shape, tiled, heads)) return heads;
  throw new DataError(
    `Cannot open '${path}': the shape of tensor '${shown(name)}', [${
      shape.join(", ")
    }], does not fit the keys '${architecture}.ssm.*'. Get the file again`,
  );
}

/** The entries with `kv_b_proj` in place of its two parts. */
function withLatent(entries: readonly TensorEntry[]): TensorEntry[] {
  const part = (name: string) => entries.find((entry) => entry.name === name);
  return entries.flatMap((keys) => {
    const [, start, of] =
      /^(.*\.(?:self_attn|attention)\.)([kv])_b_proj\.weight$/.exec(
        keys.name,
      ) ?? [];
    if (start === undefined) return [keys];
    const values = part(`${start}v_b_proj.weight`);
    if (of === "v" || !values) return [];
    return [joinedLatent(`${start}kv_b_proj.weight`, { keys, values })];
  });
}

/**
 * llama.cpp stores rows of queries and keys of some architectures with rotated pairs adjacent; checkpoints store the
 * first halves of a head's pairs first.
 */
function uninterleave(
  path: string,
  { name, shape }: GgufTensor,
  { heads }: { readonly heads: number },
): (row: number) => number {
  const [rows = 1] = shape;
  const width = rows / heads;
  if (heads < 1 || !Number.isInteger(heads) || !Number.isInteger(width / 2)) {
    throw new DataError(
      `Cannot open '${path}': tensor '${
        shown(name)
      }' has ${rows} rows, which are not pairs of ${heads} heads. Get the file again`,
    );
  }
  return (row) => uninterleavedRow(row, width);
}

/** A tensor as entries: unchanged, or as views of its blocks. */
function entriesOf(
  tensor: GgufTensor,
  file: FileSource,
  { name, rowOf, tiled }: {
    readonly name: string;
    readonly rowOf?: ((row: number) => number) | undefined;
    readonly tiled?:
      | { readonly tiled: Tiled; readonly heads: ValueHeads }
      | undefined;
  },
): TensorEntry[] {
  const { name: stored, shape, type, bytes } = tensor;
  const there = { shape, bytes, source: file, offset: tensor.offset };
  const unit = (tiled?.heads.valueDim ?? 0) * bytes /
    shape.reduce((n, size) => n * size, 1);
  // Blocks that cross the borders of heads are decoded.
  const decodes = tiled?.tiled === "columns" && isBlockType(type) &&
    tiled.heads.valueDim % type.elements !== 0;
  const { source, offset } = rowOf
    ? withRows(there, rowOf)
    : tiled && !decodes
    ? withHeads(there, tiledHead, { ...tiled, unit })
    : there;
  if (!isBlockType(type)) {
    return [{ name, dtype: type.dtype, shape, source, offset, bytes }];
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
  });
  const [decoded, ...packed] = viewsOf(matrix);
  if (decodes) {
    const { packed: _, ...plain } = decoded!;
    const unit = 4 * tiled.heads.valueDim;
    return [withHeads(plain, tiledHead, { ...tiled, unit })];
  }
  // A vector in blocks is read only as f32.
  return shape.length === 2 ? [decoded!, ...packed] : [{ ...decoded!, shape }];
}

/** A matrix in blocks as codes, scales and offsets. */
function blockMatrix(
  { name, param, source, offset, rows, columns, type }: BlockRows,
): StoredMatrix {
  const blocks = columns / type.elements;
  const rowBytes = blocks * type.bytes;
  const { offset: hasOffset }: PackedElement = PACKED_ELEMENTS[type.element];
  const groups = type.elements / type.group;
  const readRows = (begin: number, end: number) =>
    readExactly(
      source,
      offset + begin * rowBytes,
      (end - begin) * rowBytes,
    );
  const notFinite = () =>
    new DataError(
      `Cannot read tensor '${
        shown(name)
      }' of '${source.name}': a scale is not a finite number of at most 2^40. Get the file again`,
    );
  const rearranged = rearrangement(BLOCKS[type.block]);
  const words = async (begin: number, end: number) => {
    const found = rearranged(await readRows(begin, end));
    if (found) return found;
    throw notFinite();
  };
  const readAll = async (begin: number, end: number): Promise<Parts> => {
    const raw = await readRows(begin, end);
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
    const finite = [scales, offsets].every((numbers) =>
      numbers.every(isAllowedScale)
    );
    if (finite) return { codes, scales, offsets };
    throw notFinite();
  };
  return {
    param,
    of: [name],
    rows,
    columns,
    element: type.element,
    group: type.group,
    blocks: { name: type.block, source, offset, words },
    read: async (part, begin, end) =>
      (await readAll(begin, end))[part as keyof Parts],
    readAll,
  };
}
