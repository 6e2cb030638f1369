/** Writes a checkpoint as a folder of safetensors files with FP8 blocks or MXFP4 experts, tensor by tensor. */

import {
  type FileTensor,
  safetensorsHead,
  type TensorEntry,
} from "../../runtime/mod.ts";
import { bytesIn, rowsOf } from "../encodings/read.ts";
import { PACKINGS } from "../../spec/weights/packed.ts";
import { encodeFp8, encodeMxfp4Rows } from "./encode_folder.ts";
import type { Importance } from "./gguf_file.ts";
import { columnsOf, piecesOf, type SourceTensor } from "./source.ts";
import { FP8_BLOCK } from "./stored.ts";

/** A tensor of the written file. */
export interface FolderTensor extends Pick<FileTensor, "dtype" | "shape"> {
  readonly name: string;
  readonly bytes: number;
  /** Its bytes in pieces. The pieces of one matrix are requested in the order of its tensors. */
  parts(): AsyncIterable<Uint8Array>;
}

/** A format of folders. */
export interface FolderFormat {
  /** `quantization_config` of config.json, without the unquantized modules. */
  readonly config: { readonly [field: string]: unknown };
  /** Returns whether a matrix is quantized. */
  takes(tensor: SourceTensor): boolean;
  /** Returns the tensors that represent a matrix. */
  encode(tensor: SourceTensor, importance: Importance): FolderTensor[];
}

function isMatrix({ quantizable, table, shape }: SourceTensor): boolean {
  return quantizable && !table && shape.length === 2;
}

/** The formats. */
export const FOLDER_FORMATS: {
  readonly [N in "fp8" | "mxfp4"]: FolderFormat;
} = {
  fp8: {
    config: {
      quant_method: "fp8",
      fmt: "e4m3",
      activation_scheme: "dynamic",
      weight_block_size: [FP8_BLOCK, FP8_BLOCK],
    },
    takes: (tensor) =>
      isMatrix(tensor) && !/(^|\.)(lm_head|embed_tokens)\./.test(tensor.name),
    encode: (tensor) => fp8Tensors(tensor),
  },
  mxfp4: {
    config: PACKINGS.mxfp4.file!.config,
    takes: (tensor) =>
      isMatrix(tensor) && tensor.ofExperts && columnsOf(tensor) % 32 === 0,
    encode: mxfp4Tensors,
  },
};

function fp8Tensors(tensor: SourceTensor): FolderTensor[] {
  const [rows, columns] = tensor.shape as [number, number];
  const across = Math.ceil(columns / FP8_BLOCK);
  const scales = new Float32Array(Math.ceil(rows / FP8_BLOCK) * across);
  const codes = async function* (): AsyncGenerator<Uint8Array> {
    let first = 0;
    for await (const values of piecesOf(tensor, FP8_BLOCK)) {
      const encoded = encodeFp8(values, columns);
      scales.set(encoded.scales, first);
      first += encoded.scales.length;
      yield encoded.codes;
    }
  };
  const scaleBytes = new Uint8Array(scales.buffer);
  return [
    {
      name: tensor.name,
      dtype: "f8_e4m3",
      shape: tensor.shape,
      bytes: rows * columns,
      parts: codes,
    },
    {
      name: `${tensor.name}_scale_inv`,
      dtype: "f32",
      shape: [scales.length / across, across],
      bytes: scaleBytes.length,
      parts: () => once(scaleBytes),
    },
  ];
}

function mxfp4Tensors(
  tensor: SourceTensor,
  importance: Importance,
): FolderTensor[] {
  const [rows, columns] = tensor.shape as [number, number];
  const groups = columns / 32;
  const scales = new Uint8Array(rows * groups);
  const weights = importance(tensor);
  const blocks = async function* (): AsyncGenerator<Uint8Array> {
    let first = 0;
    for await (const values of piecesOf(tensor)) {
      const encoded = encodeMxfp4Rows(values, columns, weights);
      scales.set(encoded.scales, first);
      first += encoded.scales.length;
      yield encoded.codes;
    }
  };
  const { elements, scales: ending } = PACKINGS.mxfp4.names;
  return [
    {
      name: tensor.name + elements,
      dtype: "u8",
      shape: [rows, groups, 16],
      bytes: rows * columns / 2,
      parts: blocks,
    },
    {
      name: tensor.name + ending,
      dtype: "u8",
      shape: [rows, groups],
      bytes: scales.length,
      parts: () => once(scales),
    },
  ];
}

/** Returns a tensor as stored. */
export function unchanged(tensor: TensorEntry): FolderTensor {
  const { name, shape, bytes, dtype } = tensor;
  const [rows = 1] = shape;
  const each = Math.max(1, Math.floor(PIECE * rows / bytes));
  return {
    name,
    shape,
    bytes,
    dtype: dtype.toLowerCase() as FileTensor["dtype"],
    parts: async function* () {
      for (let begin = 0; begin < rows; begin += each) {
        const end = Math.min(rows, begin + each);
        yield await bytesIn(rowsOf(tensor, begin, end));
      }
    },
  };
}

/** Bytes of a tensor that are copied at once. */
const PIECE = 4 << 20;

async function* once(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield bytes;
}

/** Yields the bytes of a file of these tensors. */
export async function* fileBytes(
  tensors: readonly FolderTensor[],
  onProgress: (bytes: number) => void,
): AsyncGenerator<Uint8Array> {
  yield safetensorsHead(
    tensors.map((tensor) => [tensor.name, tensor]),
    { format: "pt" },
  );
  for (const tensor of tensors) {
    for await (const part of tensor.parts()) {
      onProgress(part.length);
      yield part;
    }
  }
}

/** Groups tensors into files of at most `most` bytes, or of one tensor. The tensors of a matrix stay together. */
export function filesOf(
  matrices: readonly (readonly FolderTensor[])[],
  max: number,
): FolderTensor[][] {
  const files: FolderTensor[][] = [[]];
  let size = 0;
  for (const tensors of matrices) {
    const bytes = tensors.reduce((sum, one) => sum + one.bytes, 0);
    if (size > 0 && size + bytes > max) {
      files.push([]);
      size = 0;
    }
    files.at(-1)!.push(...tensors);
    size += bytes;
  }
  return files;
}
