/** Writes GGUF, the file format of llama.cpp: keys with values, then tensors. */

import {
  ggufHead,
  type GgufValue,
  paddingAfter,
} from "../../engine/gguf/write.ts";

/** A tensor with its outermost axis first. */
export interface GgufTensor<Data = Float32Array> {
  readonly shape: readonly number[];
  readonly data: Data;
}

/** The data of a tensor: elements, or bytes that are generated during writing. */
export type GgufData =
  | Float32Array
  | {
    readonly dtype: keyof typeof STORED;
    parts(): Iterable<Uint8Array>;
  }
  | {
    /** The number of a block type, and the bytes of all blocks. */
    readonly type: number;
    readonly blocks: Uint8Array;
  };

/** Numbers of types of tensors. */
const STORED = { f32: 0, bf16: 30 };

/** Yields the parts of a file. */
export function* writeGguf(
  keys: { readonly [key: string]: GgufValue },
  tensors: { readonly [name: string]: GgufTensor<GgufData> },
): Generator<Uint8Array> {
  const entries = Object.entries(tensors);
  yield ggufHead(
    keys,
    entries.map(([name, tensor]) => ({
      name,
      shape: tensor.shape,
      type: typeOf(tensor.data),
      bytes: bytesOf(tensor),
    })),
  );
  for (const [, tensor] of entries) {
    const { data } = tensor;
    if ("dtype" in data) yield* data.parts();
    else if ("type" in data) yield data.blocks;
    else yield new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    yield paddingAfter(bytesOf(tensor));
  }
}

/**
 * Returns the keys of a vocabulary of the given size. Nothing is tokenized, but llama.cpp requires words for all bytes.
 */
export function vocabularyKeys(
  size: number,
): { readonly [key: string]: GgufValue } {
  const bytes = Array.from(
    { length: 256 },
    (_, i) => `<0x${i.toString(16).toUpperCase().padStart(2, "0")}>`,
  );
  const control = ["<unk>", "<s>", "</s>"];
  const words = Array.from(
    { length: size - bytes.length - control.length },
    (_, i) => `\u2581${i}`,
  );
  const [NORMAL, UNKNOWN, CONTROL, BYTE] = [1, 2, 3, 6] as const;
  return {
    "tokenizer.ggml.model": { text: "llama" },
    "tokenizer.ggml.tokens": { texts: [...control, ...bytes, ...words] },
    "tokenizer.ggml.scores": { f32s: new Array<number>(size).fill(0) },
    "tokenizer.ggml.token_type": {
      i32s: [
        ...[UNKNOWN, CONTROL, CONTROL],
        ...bytes.map(() => BYTE),
        ...words.map(() => NORMAL),
      ],
    },
    "tokenizer.ggml.bos_token_id": { u32: 1 },
    "tokenizer.ggml.eos_token_id": { u32: 2 },
    "tokenizer.ggml.unknown_token_id": { u32: 0 },
  };
}

function typeOf(data: GgufData): number {
  return "type" in data
    ? data.type
    : STORED["dtype" in data ? data.dtype : "f32"];
}

function bytesOf({ shape, data }: GgufTensor<GgufData>): number {
  if ("type" in data) return data.blocks.length;
  const width = "dtype" in data && data.dtype === "bf16" ? 2 : 4;
  return shape.reduce((n, size) => n * size, width);
}
