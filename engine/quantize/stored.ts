/** Packed matrices as a checkpoint stores them, for formats with the same elements and scales: nothing is rounded. */

import type { TensorDirectory, TensorEntry } from "../../runtime/mod.ts";
import { DataError } from "../../spec/errors.ts";
import { shown } from "../../spec/shown.ts";
import { isAllowedScale } from "../../spec/weights/activations.ts";
import {
  blockDecoder,
  type BlockName,
  BLOCKS,
} from "../../spec/weights/blocks.ts";
import {
  groupedDType,
  isBlockDType,
  PACKINGS,
} from "../../spec/weights/packed.ts";
import { rowSource } from "../encodings/matrix.ts";
import { bytesIn, rowsOf } from "../encodings/read.ts";
import { FP8_BLOCK } from "./encode_folder.ts";

/** A matrix as blocks of a GGUF type: its last axis has the bytes of a row. */
export interface BlockTensor extends TensorEntry {
  readonly type: BlockName;
}

/** The tensors that represent a matrix in a format of folders. */
export interface StoredParts {
  readonly format: "fp8" | "mxfp4";
  readonly tensors: readonly TensorEntry[];
}

/** The elements of a matrix and its scales: powers of two. */
interface Mxfp4 {
  readonly elements: TensorEntry;
  readonly scales: TensorEntry;
}

/** Returns the blocks of a parameter, if its elements and scales are those of a GGUF type. */
export function storedBlocks(
  tensors: TensorDirectory,
  param: string,
): BlockTensor | undefined {
  const packed = tensors.get(param)?.packed;
  if (packed && isBlockDType(packed)) {
    const entry = tensors.get(param + PACKINGS[packed].names.elements);
    if (!entry) return undefined;
    const shape = [entry.shape[0]!, entry.bytes / entry.shape[0]!];
    return { ...entry, type: packed, shape };
  }
  const found = mxfp4Of(tensors, param);
  return found && mxfp4Blocks(found);
}

/** Returns the tensors of a parameter that have the layout of a folder. */
export function storedParts(
  tensors: TensorDirectory,
  param: string,
): StoredParts | undefined {
  const mxfp4 = mxfp4Of(tensors, param);
  if (mxfp4) {
    return { format: "mxfp4", tensors: [mxfp4.elements, mxfp4.scales] };
  }
  const { names } = PACKINGS[groupedDType("fp8", FP8_BLOCK)];
  const codes = tensors.get(param + names.elements);
  const scales = tensors.get(`${param}_scale_inv`);
  const shape = tensors.get(param)?.shape;
  const blocks = shape?.map((size) => Math.ceil(size / FP8_BLOCK)).join();
  if (!codes || scales?.dtype !== "F32" || scales.shape.join() !== blocks) {
    return undefined;
  }
  const stored = { ...codes, name: param, dtype: "F8_E4M3", shape: shape! };
  return { format: "fp8", tensors: [stored, scales] };
}

function mxfp4Of(tensors: TensorDirectory, param: string): Mxfp4 | undefined {
  const { names } = PACKINGS.mxfp4;
  const elements = tensors.get(param + names.elements);
  const scales = tensors.get(param + names.scales);
  if (!elements || scales?.dtype !== "U8") return undefined;
  const shape = [...elements.shape.slice(0, -1), 16];
  return { elements: { ...elements, dtype: "U8", shape }, scales };
}

/**
 * Blocks with the elements and scales of MXFP4: a scale and 16 bytes each. Byte i of a block has elements i and i + 16;
 * byte i of a group in a checkpoint has elements 2 i and 2 i + 1.
 */
function mxfp4Blocks({ elements, scales }: Mxfp4): BlockTensor {
  const axes = elements.shape.slice(0, -2);
  const groups = elements.shape.at(-2)!;
  const rows = axes.reduce((n, size) => n * size, 1);
  const rowBytes = 17 * groups;
  const flat = (entry: TensorEntry, begin: number, end: number) =>
    rowsOf({ ...entry, shape: [rows, entry.bytes / rows] }, begin, end);
  const source = rowSource(elements.source.name, {
    rows,
    rowBytes,
    read: async (begin, end) => {
      const bytes = await bytesIn(flat(scales, begin, end));
      const codes = await bytesIn(flat(elements, begin, end));
      const blocks = new Uint8Array((end - begin) * rowBytes);
      for (let group = 0; group < bytes.length; group++) {
        const [from, to] = [16 * group, 17 * group];
        blocks[to] = bytes[group]!;
        for (let i = 0; i < 16; i++) {
          const low = codes[from + (i >> 1)]! >> 4 * (i & 1) & 15;
          const high = codes[from + 8 + (i >> 1)]! >> 4 * (i & 1) & 15;
          blocks[to + 1 + i] = low | high << 4;
        }
      }
      return blocks;
    },
  });
  return {
    ...elements,
    type: "mxfp4_block",
    shape: [...axes, rowBytes],
    source,
    offset: 0,
    bytes: source.size,
  };
}

/** Bytes of blocks in memory. */
const PIECE = 1 << 20;

/** Yields the bytes of blocks in pieces of rows. Throws DataError for a scale that files must not have. */
export async function* blockRows(
  { type, ...blocks }: BlockTensor,
): AsyncGenerator<Uint8Array> {
  const { elements, group, bytes: size } = BLOCKS[type];
  const decode = blockDecoder(type);
  const scales = new Float32Array(elements / group);
  const parts = {
    codes: new Uint8Array(elements),
    scales,
    offsets: new Float32Array(scales.length),
  };
  const rowBytes = blocks.shape.at(-1)!;
  const rows = blocks.bytes / rowBytes;
  const each = Math.max(1, Math.floor(PIECE / rowBytes));
  const flat = { ...blocks, shape: [rows, rowBytes] };
  for (let begin = 0; begin < rows; begin += each) {
    const end = Math.min(rows, begin + each);
    const read = await bytesIn(rowsOf(flat, begin, end));
    for (let at = 0; at < read.length; at += size) {
      decode(read.subarray(at, at + size), parts);
      if (scales.every(isAllowedScale) && parts.offsets.every(isAllowedScale)) {
        continue;
      }
      throw new DataError(
        `Cannot read tensor '${
          shown(blocks.name)
        }' of '${blocks.source.name}': a scale is not a finite number of at most 2^40. Get the file again`,
      );
    }
    yield read;
  }
}
