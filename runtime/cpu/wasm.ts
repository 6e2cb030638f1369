/**
 * A small WebAssembly assembler: functions as streams of instructions, and a module with one imported shared memory. A
 * general library (binaryen) takes 260 ms to load and 100 MB on disk, but all kernels of a model must be ready within
 * 300 ms; the required part of the format fits on this page.
 */

import { invariant } from "../../spec/errors.ts";
import { bitsOf } from "../../spec/kernel/semantics.ts";

/** Types of WebAssembly values. */
export type WasmType = "i32" | "i64" | "v128";

const TYPE_CODE: { readonly [T in WasmType]: number } = {
  i32: 0x7f,
  i64: 0x7e,
  v128: 0x7b,
};

/**
 * Instructions without immediates and with consecutive numbers. Those of scalars are one byte; others follow the byte
 * 0xfd.
 */
const FAMILIES = [
  ["i32", 0x45, "eqz eq ne lt_s lt_u gt_s gt_u le_s le_u ge_s ge_u"],
  ["i64", 0x54, "lt_u"],
  [
    "i32",
    0x6a,
    "add sub mul div_s div_u rem_s rem_u and or xor shl shr_s shr_u",
  ],
  ["i64", 0x7c, "add"],
  ["i64", 0x7e, "mul"],
  ["i64", 0xad, "extend_i32_u"],
  ["i32x4", 0x11, "splat"],
  ["i32x4", 0x37, "eq ne lt_s lt_u gt_s gt_u le_s le_u ge_s ge_u"],
  ["f32x4", 0x41, "eq ne lt gt le ge"],
  ["f64x2", 0x49, "lt"],
  ["v128", 0x4d, "not and andnot or xor bitselect any_true"],
  ["f32x4", 0x5e, "demote_f64x2_zero"],
  ["f64x2", 0x5f, "promote_low_f32x4"],
  ["f32x4", 0x67, "ceil floor trunc nearest"],
  ["f64x2", 0x75, "floor"],
  ["f64x2", 0x94, "nearest"],
  ["i32x4", 0xa1, "neg"],
  ["i32x4", 0xa3, "all_true"],
  ["i32x4", 0xab, "shl shr_s shr_u add"],
  ["i32x4", 0xb1, "sub"],
  ["i8x16", 0x0e, "swizzle"],
  ["i16x8", 0x8b, "shl shr_s shr_u"],
  ["i32x4", 0xb5, "mul min_s min_u max_s max_u dot_i16x8_s"],
  ["i64x2", 0xc7, "extend_low_i32x4_s"],
  ["i64x2", 0xcb, "shl"],
  ["i64x2", 0xcd, "shr_u add"],
  ["i64x2", 0xd1, "sub"],
  ["f32x4", 0xe0, "abs neg"],
  ["f32x4", 0xe3, "sqrt add sub mul div"],
  ["f32x4", 0xea, "pmin pmax"],
  ["f64x2", 0xec, "abs neg"],
  ["f64x2", 0xf0, "add sub mul div"],
  ["f64x2", 0xf6, "pmin pmax"],
  ["i32x4", 0xf8, "trunc_sat_f32x4_s trunc_sat_f32x4_u"],
  ["f32x4", 0xfa, "convert_i32x4_s convert_i32x4_u"],
  ["i32x4", 0xfc, "trunc_sat_f64x2_s_zero"],
  ["f64x2", 0xfe, "convert_low_i32x4_s"],
] as const;

type Words<S extends string> = S extends `${infer A} ${infer B}` ? A | Words<B>
  : S;
type Named<F> = F extends
  readonly [infer P extends string, number, infer W extends string]
  ? `${P}.${Words<W>}`
  : never;

/** Names of instructions without immediates. */
export type WasmOp =
  | "else"
  | "end"
  | "select"
  | Named<(typeof FAMILIES)[number]>;

const END = 0x0b;
const OPCODES = new Map<string, readonly number[]>([
  ["else", [0x05]],
  ["end", [END]],
  ["select", [0x1b]],
  ...FAMILIES.flatMap(([type, first, names]) =>
    names.split(" ").map((name, i) => {
      const code: number[] = type === "i32" || type === "i64" ? [] : [0xfd];
      if (code.length > 0) pushUnsigned(code, first + i);
      else code.push(first + i);
      return [`${type}.${name}`, code] as const;
    })
  ),
]);

/** Loads and stores: opcode bytes and the alignment exponent of their operand. */
const MEMORY = {
  "i32.load": [[0x28], 2],
  "i32.store": [[0x36], 2],
  "v128.load": [[0xfd, 0x00], 2],
  "v128.load32_splat": [[0xfd, 0x09], 2],
  "v128.load64_splat": [[0xfd, 0x0a], 3],
  "v128.load32_zero": [[0xfd, 0x5c], 2],
  "v128.store": [[0xfd, 0x0b], 2],
} as const;

/** Names of loads and stores. */
export type WasmMemoryOp = keyof typeof MEMORY;

function pushUnsigned(out: number[], value: number): void {
  let rest = value;
  while (rest >= 0x80) {
    out.push((rest % 128) | 0x80);
    rest = Math.floor(rest / 128);
  }
  out.push(rest);
}

function pushSigned(out: number[], value: number): void {
  let rest = value | 0;
  while (true) {
    const low = rest & 0x7f;
    rest >>= 7;
    if ((rest === 0 && !(low & 0x40)) || (rest === -1 && (low & 0x40))) {
      out.push(low);
      return;
    }
    out.push(low | 0x80);
  }
}

/** A function under construction: a stream of instructions and its locals. */
export class WasmFunction {
  readonly params: readonly WasmType[];
  readonly results: readonly WasmType[];
  #locals: WasmType[] = [];
  #code: number[] = [];
  /** The last `set` and its offset. */
  #set = { local: -1, at: 0, end: 0 };

  constructor(params: readonly WasmType[], results: readonly WasmType[]) {
    this.params = params;
    this.results = results;
  }

  /** A new local variable, initially zero. */
  local(type: WasmType): number {
    this.#locals.push(type);
    return this.params.length + this.#locals.length - 1;
  }
  /** Emits instructions without immediates, in order. */
  op(...ops: readonly WasmOp[]): void {
    for (const op of ops) {
      const code = OPCODES.get(op);
      invariant(code, `instruction '${op}'`);
      this.#code.push(...code);
    }
  }
  /** Pushes a local. If it was just set, `tee` replaces `set`. */
  get(local: number): void {
    const { at, end } = this.#set;
    if (this.#set.local === local && end === this.#code.length) {
      this.#code[at] = 0x22;
      this.#set.end = -1;
      return;
    }
    this.#code.push(0x20);
    pushUnsigned(this.#code, local);
  }
  set(local: number): void {
    const at = this.#code.length;
    this.#code.push(0x21);
    pushUnsigned(this.#code, local);
    this.#set = { local, at, end: this.#code.length };
  }
  tee(local: number): void {
    this.#code.push(0x22);
    pushUnsigned(this.#code, local);
  }
  /** An i32 constant; unsigned values wrap. */
  i32(value: number): void {
    this.#code.push(0x41);
    pushSigned(this.#code, value);
  }
  /** An i64 constant below 2^31. */
  i64(value: number): void {
    invariant(value === (value | 0), "a constant of i64 has 32 bits");
    this.#code.push(0x42);
    pushSigned(this.#code, value);
  }
  /** A vector constant of four u32 words. */
  words(a: number, b: number, c: number, d: number): void {
    this.#code.push(0xfd, 0x0c);
    for (const word of [a, b, c, d]) {
      for (let s = 0; s < 32; s += 8) this.#code.push((word >>> s) & 0xff);
    }
  }
  /** The same f32 in every lane. */
  f32x4(value: number): void {
    const word = bitsOf("f32", value);
    this.words(word, word, word, word);
  }
  /** The same f64 in both lanes. */
  f64x2(value: number): void {
    const bits = new Uint32Array(new Float64Array([value]).buffer);
    this.words(bits[0]!, bits[1]!, bits[0]!, bits[1]!);
  }
  load(op: WasmMemoryOp, offset = 0): void {
    const [code, align] = MEMORY[op];
    this.#code.push(...code, align);
    pushUnsigned(this.#code, offset);
  }
  /** Loads one 32-bit lane of a vector: address and vector are on the stack. */
  loadLane(lane: number): void {
    this.#code.push(0xfd, 0x56, 2, 0, lane);
  }
  /** Stores one 32-bit lane of a vector: address and vector are on the stack. */
  storeLane(lane: number): void {
    this.#code.push(0xfd, 0x5a, 2, 0, lane);
  }
  /** One lane of a vector as an i32. */
  extract(lane: number): void {
    this.#code.push(0xfd, 0x1b, lane);
  }
  /** Replaces one lane by an i32. */
  replace(lane: number): void {
    this.#code.push(0xfd, 0x1c, lane);
  }
  /** Selects 32-bit words of two vectors; 0 to 3 are of the first. */
  shuffle(...words: readonly [number, number, number, number]): void {
    this.#code.push(0xfd, 0x0d);
    for (const word of words) {
      for (let byte = 0; byte < 4; byte++) this.#code.push(word * 4 + byte);
    }
  }
  /** Fills memory: address, byte and length are on the stack. */
  fill(): void {
    this.#code.push(0xfc, 0x0b, 0);
  }
  /** Copies memory: destination, source and length are on the stack. */
  copy(): void {
    this.#code.push(0xfc, 0x0a, 0, 0);
  }
  if(): void {
    this.#code.push(0x04, 0x40);
  }
  block(): void {
    this.#code.push(0x02, 0x40);
  }
  loop(): void {
    this.#code.push(0x03, 0x40);
  }
  branch(depth: number): void {
    this.#code.push(0x0c, depth);
  }
  branchIf(depth: number): void {
    this.#code.push(0x0d, depth);
  }
  call(index: number): void {
    this.#code.push(0x10);
    pushUnsigned(this.#code, index);
  }
  /** The encoded body, in pieces. */
  encode(): Pieces {
    const head: number[] = [];
    const runs: { type: WasmType; count: number }[] = [];
    for (const type of this.#locals) {
      const last = runs.at(-1);
      if (last?.type === type) last.count++;
      else runs.push({ type, count: 1 });
    }
    pushUnsigned(head, runs.length);
    for (const { type, count } of runs) {
      pushUnsigned(head, count);
      head.push(TYPE_CODE[type]);
    }
    return [head, this.#code, [END]];
  }
}

/** Bytes, concatenated once. */
type Pieces = readonly (readonly number[])[];

function lengthOf(pieces: Pieces): number {
  return pieces.reduce((sum, { length }) => sum + length, 0);
}

/** A module of functions over one memory, which is imported as `env.memory`. */
export class WasmModule {
  #functions: WasmFunction[] = [];
  #exports: { name: string; index: number }[] = [];

  /** Adds a function and returns its index. `exported`: export name. */
  add(fn: WasmFunction, exported?: string): number {
    this.#functions.push(fn);
    const index = this.#functions.length - 1;
    if (exported !== undefined) this.#exports.push({ name: exported, index });
    return index;
  }

  /** The binary form. */
  encode(): Uint8Array<ArrayBuffer> {
    const out: (readonly number[])[] = [[0x00, 0x61, 0x73, 0x6d, 1, 0, 0, 0]];
    const section = (id: number, content: Pieces) => {
      const head = [id];
      pushUnsigned(head, lengthOf(content));
      out.push(head);
      for (const piece of content) out.push(piece);
    };
    const name = (into: number[], text: string) => {
      const bytes = new TextEncoder().encode(text);
      pushUnsigned(into, bytes.length);
      into.push(...bytes);
    };
    const list = (into: number[], types: readonly WasmType[]) => {
      pushUnsigned(into, types.length);
      for (const type of types) into.push(TYPE_CODE[type]);
    };

    const types: number[] = [];
    pushUnsigned(types, this.#functions.length);
    for (const fn of this.#functions) {
      types.push(0x60);
      list(types, fn.params);
      list(types, fn.results);
    }
    section(1, [types]);

    const imports: number[] = [1];
    name(imports, "env");
    name(imports, "memory");
    imports.push(0x02, 0x03);
    pushUnsigned(imports, 1);
    pushUnsigned(imports, MEMORY_PAGES);
    section(2, [imports]);

    const indices: number[] = [];
    pushUnsigned(indices, this.#functions.length);
    this.#functions.forEach((_, index) => pushUnsigned(indices, index));
    section(3, [indices]);

    const exports: number[] = [];
    pushUnsigned(exports, this.#exports.length);
    for (const { name: text, index } of this.#exports) {
      name(exports, text);
      exports.push(0x00);
      pushUnsigned(exports, index);
    }
    section(7, [exports]);

    const count: number[] = [];
    pushUnsigned(count, this.#functions.length);
    const code: (readonly number[])[] = [count];
    for (const fn of this.#functions) {
      const body = fn.encode();
      const length: number[] = [];
      pushUnsigned(length, lengthOf(body));
      code.push(length, ...body);
    }
    section(10, code);
    const bytes = new Uint8Array(lengthOf(out));
    let at = 0;
    for (const piece of out) {
      bytes.set(piece, at);
      at += piece.length;
    }
    return bytes;
  }
}

/** Maximum number of 64 KiB pages of a 32-bit memory. */
export const MEMORY_PAGES = 65536;
