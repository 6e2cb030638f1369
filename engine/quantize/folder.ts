/** Writes a checkpoint as a folder of safetensors files with FP8 blocks or MXFP4 experts, tensor by tensor. */

import {
  type FileTensor,
  safetensorsHead,
  type TensorEntry,
} from "../../runtime/mod.ts";
import { bytesIn, rowsOf } from "../encodings/read.ts";
import { PACKINGS } from "../../spec/weights/packed.ts";
import { inOrder } from "../in_order.ts";
import type { Encoder } from "./encode.ts";
import { FP8_BLOCK } from "./encode_folder.ts";
import type { Importance } from "./gguf_file.ts";
import { columnsOf, piecesOf, type SourceTensor } from "./source.ts";

/** A tensor of the written file. */
export interface FolderTensor extends Pick<FileTensor, "dtype" | "shape"> {
  readonly name: string;
  readonly bytes: number;
  /** Actions that return its bytes. The tensors of one matrix are requested and written in their order. */
  parts(): AsyncIterable<() => Promise<Uint8Array>>;
}

/** Options of encoding a matrix. */
export interface EncodeOptions {
  readonly importance: Importance;
  readonly encoder: Encoder;
}

/** A format of folders. */
export interface FolderFormat {
  /** `quantization_config` of config.json, without the unquantized modules. */
  readonly config: { readonly [field: string]: unknown };
  /** Returns whether a matrix is quantized. */
  takes(tensor: SourceTensor): boolean;
  /** Returns the tensors that represent a matrix. */
  encode(tensor: SourceTensor, options: EncodeOptions): FolderTensor[];
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
    encode: fp8Tensors,
  },
  mxfp4: {
    config: PACKINGS.mxfp4.file!.config,
    takes: (tensor) =>
      isMatrix(tensor) && tensor.ofExperts && columnsOf(tensor) % 32 === 0,
    encode: mxfp4Tensors,
  },
};

function fp8Tensors(
  tensor: SourceTensor,
  options: EncodeOptions,
): FolderTensor[] {
  const [rows, columns] = tensor.shape as [number, number];
  const blocks = [rows, columns].map((n) => Math.ceil(n / FP8_BLOCK)) as [
    number,
    number,
  ];
  const [codes, scales] = encodedParts(tensor, {
    ...options,
    folder: "fp8",
    height: FP8_BLOCK,
    scaleBytes: [blocks[0], 4 * blocks[1]],
  });
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
      shape: blocks,
      bytes: 4 * blocks[0] * blocks[1],
      parts: scales,
    },
  ];
}

function mxfp4Tensors(
  tensor: SourceTensor,
  options: EncodeOptions,
): FolderTensor[] {
  const [rows, columns] = tensor.shape as [number, number];
  const groups = columns / 32;
  const [blocks, scales] = encodedParts(tensor, {
    ...options,
    folder: "mxfp4",
    height: 1,
    scaleBytes: [rows, groups],
  });
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
      bytes: rows * groups,
      parts: scales,
    },
  ];
}

/** Returns the parts of the codes of a matrix, and of its scales, which must be written after them. */
function encodedParts(
  tensor: SourceTensor,
  { folder, height, scaleBytes: [down, across], importance, encoder }:
    & EncodeOptions
    & {
      readonly folder: "fp8" | "mxfp4";
      /** Rows of the matrix per row of scales. */
      readonly height: number;
      /** Rows of scales, and bytes of a row. */
      readonly scaleBytes: readonly [number, number];
    },
): [FolderTensor["parts"], FolderTensor["parts"]] {
  const scales = new Uint8Array(down * across);
  const columns = columnsOf(tensor);
  return [
    async function* () {
      const task = {
        format: { folder },
        columns,
        importance: importance(tensor),
      };
      let row = 0;
      for await (const values of piecesOf(tensor, height)) {
        const at = row * across;
        row += Math.ceil(values.length / columns / height);
        yield async () => {
          const encoded = await encoder.encode({ ...task, values });
          scales.set(encoded.scales, at);
          return encoded.codes;
        };
      }
    },
    () => once(scales),
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
        yield () => bytesIn(rowsOf(tensor, begin, end));
      }
    },
  };
}

/** Bytes of a tensor that are copied at once. */
const PIECE = 4 << 20;

async function* once(
  bytes: Uint8Array,
): AsyncGenerator<() => Promise<Uint8Array>> {
  yield () => Promise.resolve(bytes);
}

/** Yields the bytes of a file of these tensors. `onProgress` receives the number of bytes of each part. */
export async function* fileBytes(
  tensors: readonly FolderTensor[],
  { atOnce, onProgress }: {
    readonly atOnce: number;
    readonly onProgress: (bytes: number) => void;
  },
): AsyncGenerator<Uint8Array> {
  yield safetensorsHead(
    tensors.map((tensor) => [tensor.name, tensor]),
    { format: "pt" },
  );
  const parts = async function* () {
    for (const tensor of tensors) yield* tensor.parts();
  };
  for await (const part of inOrder(parts(), atOnce)) {
    onProgress(part.length);
    yield part;
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
