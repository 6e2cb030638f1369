/** Writes GGUF, the file format of llama.cpp: keys with values, then tensors of f32 or bf16. */

/** A value of a key. */
export type GgufValue =
  | { readonly u32: number }
  | { readonly f32: number }
  | { readonly text: string }
  | { readonly texts: readonly string[] }
  | { readonly bool: boolean }
  | { readonly f32s: readonly number[] }
  | { readonly i32s: readonly number[] };

/** A tensor, its outermost axis first. */
export interface GgufTensor<Data = Float32Array> {
  readonly shape: readonly number[];
  readonly data: Data;
}

/** What a tensor is written from: elements, or bytes that are made as they are written. */
export type GgufData =
  | Float32Array
  | {
    readonly dtype: keyof typeof STORED;
    parts(): Iterable<Uint8Array>;
  }
  | {
    /** The number of a type in blocks, and the bytes of all blocks. */
    readonly type: number;
    readonly blocks: Uint8Array;
  };

const VERSION = 3;
const ALIGNMENT = 32;
// Codes of types of tensors, and of values.
const STORED = { f32: 0, bf16: 30 };
const CODE = { u32: 4, i32: 5, f32: 6, bool: 7, text: 8, array: 9 };

/** The parts of a file. */
export function* writeGguf(
  keys: { readonly [key: string]: GgufValue },
  tensors: { readonly [name: string]: GgufTensor<GgufData> },
): Generator<Uint8Array> {
  const names = Object.keys(tensors);
  const head: Uint8Array[] = [
    Buffer.from("GGUF"),
    u32(VERSION),
    u64(names.length),
    u64(Object.keys(keys).length),
  ];
  for (const [key, value] of Object.entries(keys)) {
    head.push(...text(key), ...encode(value));
  }
  let offset = 0;
  for (const name of names) {
    const { shape, data } = tensors[name]!;
    // The innermost axis comes first.
    head.push(...text(name), u32(shape.length), ...shape.map(u64).reverse());
    head.push(u32(typeOf(data)), u64(offset));
    const bytes = bytesOf(tensors[name]!);
    offset += bytes + padding(bytes).length;
  }
  yield* head;
  yield padding(head.reduce((sum, part) => sum + part.length, 0));
  for (const name of names) {
    const { data } = tensors[name]!;
    if ("dtype" in data) yield* data.parts();
    else if ("type" in data) yield data.blocks;
    else yield new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    yield padding(bytesOf(tensors[name]!));
  }
}

/** Keys of a vocabulary of so many words: nothing is tokenized, but llama.cpp does not start without words for all bytes. */
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

function encode(value: GgufValue): Uint8Array[] {
  if ("u32" in value) return [u32(CODE.u32), u32(value.u32)];
  if ("f32" in value) return [u32(CODE.f32), f32(value.f32)];
  if ("bool" in value) return [u32(CODE.bool), Uint8Array.of(+value.bool)];
  if ("text" in value) return [u32(CODE.text), ...text(value.text)];
  if ("texts" in value) {
    return [...array(CODE.text, value.texts), ...value.texts.flatMap(text)];
  }
  if ("f32s" in value) {
    return [...array(CODE.f32, value.f32s), ...value.f32s.map(f32)];
  }
  return [...array(CODE.i32, value.i32s), ...value.i32s.map(u32)];
}

function array(code: number, { length }: readonly unknown[]): Uint8Array[] {
  return [u32(CODE.array), u32(code), u64(length)];
}

function text(value: string): Uint8Array[] {
  const bytes = Buffer.from(value);
  return [u64(bytes.length), bytes];
}

function u32(value: number): Uint8Array {
  return new Uint8Array(Uint32Array.of(value).buffer);
}

function f32(value: number): Uint8Array {
  return new Uint8Array(Float32Array.of(value).buffer);
}

function u64(value: number): Uint8Array {
  return new Uint8Array(BigUint64Array.of(BigInt(value)).buffer);
}

function padding(length: number): Uint8Array {
  return new Uint8Array((ALIGNMENT - length % ALIGNMENT) % ALIGNMENT);
}
