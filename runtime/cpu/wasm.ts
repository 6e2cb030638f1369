/**
 * A small WebAssembly assembler: functions as streams of instructions, a module with one imported shared memory.
 * Our own because a general library (binaryen) takes 260 ms to load and 100 MB on disk, and the budget for making all
 * kernels of a model ready is 300 ms; what we need of the format fits on this page.
 */

import { invariant } from "../../spec/errors.ts";

/** Types of WebAssembly values. */
export type WasmType = "i32" | "i64" | "v128";

const TYPE_CODE: { readonly [T in WasmType]: number } = {
  i32: 0x7f,
  i64: 0x7e,
  v128: 0x7b,
};

/** Plain instructions, one byte each. */
const PLAIN = {
  else: 0x05,
  end: 0x0b,
  select: 0x1b,
  "i32.eqz": 0x45,
  "i32.eq": 0x46,
  "i32.ne": 0x47,
  "i32.lt_s": 0x48,
  "i32.lt_u": 0x49,
  "i32.gt_s": 0x4a,
  "i32.gt_u": 0x4b,
  "i32.le_s": 0x4c,
  "i32.le_u": 0x4d,
  "i32.ge_s": 0x4e,
  "i32.ge_u": 0x4f,
  "i64.lt_u": 0x54,
  "i32.add": 0x6a,
  "i32.sub": 0x6b,
  "i32.mul": 0x6c,
  "i32.div_s": 0x6d,
  "i32.div_u": 0x6e,
  "i32.rem_s": 0x6f,
  "i32.rem_u": 0x70,
  "i32.and": 0x71,
  "i32.or": 0x72,
  "i32.xor": 0x73,
  "i32.shl": 0x74,
  "i32.shr_s": 0x75,
  "i32.shr_u": 0x76,
  "i64.add": 0x7c,
  "i64.mul": 0x7e,
  "i64.extend_i32_u": 0xad,
} as const;

/** Vector instructions without immediates: the number after the 0xfd prefix. */
const VECTOR = {
  "i32x4.splat": 0x11,
  "f32x4.eq": 0x41,
  "f32x4.ne": 0x42,
  "f32x4.lt": 0x43,
  "f32x4.gt": 0x44,
  "f32x4.le": 0x45,
  "f32x4.ge": 0x46,
  "i32x4.eq": 0x37,
  "i32x4.ne": 0x38,
  "i32x4.lt_s": 0x39,
  "i32x4.lt_u": 0x3a,
  "i32x4.gt_s": 0x3b,
  "i32x4.gt_u": 0x3c,
  "i32x4.le_s": 0x3d,
  "i32x4.le_u": 0x3e,
  "i32x4.ge_s": 0x3f,
  "i32x4.ge_u": 0x40,
  "v128.not": 0x4d,
  "v128.and": 0x4e,
  "v128.andnot": 0x4f,
  "v128.or": 0x50,
  "v128.xor": 0x51,
  "v128.bitselect": 0x52,
  "v128.any_true": 0x53,
  "f64x2.promote_low_f32x4": 0x5f,
  "f32x4.demote_f64x2_zero": 0x5e,
  "f32x4.ceil": 0x67,
  "f32x4.floor": 0x68,
  "f32x4.trunc": 0x69,
  "f32x4.nearest": 0x6a,
  "f64x2.nearest": 0x94,
  "i32x4.neg": 0xa1,
  "i32x4.all_true": 0xa3,
  "i32x4.bitmask": 0xa4,
  "i32x4.shl": 0xab,
  "i32x4.shr_s": 0xac,
  "i32x4.shr_u": 0xad,
  "i32x4.add": 0xae,
  "i32x4.sub": 0xb1,
  "i32x4.mul": 0xb5,
  "i32x4.min_s": 0xb6,
  "i32x4.min_u": 0xb7,
  "i32x4.max_s": 0xb8,
  "i32x4.max_u": 0xb9,
  "i64x2.shl": 0xcb,
  "i64x2.shr_u": 0xcd,
  "i64x2.add": 0xce,
  "i64x2.sub": 0xd1,
  "i64x2.extend_low_i32x4_s": 0xc7,
  "f32x4.abs": 0xe0,
  "f32x4.neg": 0xe1,
  "f32x4.sqrt": 0xe3,
  "f32x4.add": 0xe4,
  "f32x4.sub": 0xe5,
  "f32x4.mul": 0xe6,
  "f32x4.div": 0xe7,
  "f32x4.pmin": 0xea,
  "f32x4.pmax": 0xeb,
  "f64x2.abs": 0xec,
  "f64x2.neg": 0xed,
  "f64x2.add": 0xf0,
  "f64x2.sub": 0xf1,
  "f64x2.mul": 0xf2,
  "f64x2.div": 0xf3,
  "f64x2.pmin": 0xf6,
  "f64x2.pmax": 0xf7,
  "f64x2.lt": 0x49,
  "i32x4.trunc_sat_f32x4_s": 0xf8,
  "i32x4.trunc_sat_f32x4_u": 0xf9,
  "f32x4.convert_i32x4_s": 0xfa,
  "f32x4.convert_i32x4_u": 0xfb,
  "i32x4.trunc_sat_f64x2_s_zero": 0xfc,
  "f64x2.convert_low_i32x4_s": 0xfe,
} as const;

/** Loads and stores: opcode bytes and the alignment exponent of their operand. */
const MEMORY = {
  "i32.load": [[0x28], 2],
  "i32.store": [[0x36], 2],
  "v128.load": [[0xfd, 0x00], 2],
  "v128.load32_splat": [[0xfd, 0x09], 2],
  "v128.load32_zero": [[0xfd, 0x5c], 2],
  "v128.store": [[0xfd, 0x0b], 2],
} as const;

/** Names of instructions without immediates. */
export type WasmOp = keyof typeof PLAIN | keyof typeof VECTOR;
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

/** A function in the making: a stream of instructions and its locals. */
export class WasmFunction {
  readonly params: readonly WasmType[];
  readonly results: readonly WasmType[];
  #locals: WasmType[] = [];
  #code: number[] = [];

  constructor(params: readonly WasmType[], results: readonly WasmType[]) {
    this.params = params;
    this.results = results;
  }

  /** A new local variable; its value is zero until set. */
  local(type: WasmType): number {
    this.#locals.push(type);
    return this.params.length + this.#locals.length - 1;
  }
  /** Instructions without immediates, in order. */
  op(...ops: readonly WasmOp[]): void {
    for (const op of ops) {
      if (op in PLAIN) this.#code.push(PLAIN[op as keyof typeof PLAIN]);
      else {
        this.#code.push(0xfd);
        pushUnsigned(this.#code, VECTOR[op as keyof typeof VECTOR]);
      }
    }
  }
  get(local: number): void {
    this.#code.push(0x20);
    pushUnsigned(this.#code, local);
  }
  set(local: number): void {
    this.#code.push(0x21);
    pushUnsigned(this.#code, local);
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
  /** Four u32 words as a vector constant. */
  words(a: number, b: number, c: number, d: number): void {
    this.#code.push(0xfd, 0x0c);
    for (const word of [a, b, c, d]) {
      for (let s = 0; s < 32; s += 8) this.#code.push((word >>> s) & 0xff);
    }
  }
  /** The same f32 in every lane. */
  f32x4(value: number): void {
    const word = f32Bits(value);
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
  /** Load one 32-bit lane of a vector: address and vector are on the stack. */
  loadLane(lane: number): void {
    this.#code.push(0xfd, 0x56, 2, 0, lane);
  }
  /** Store one 32-bit lane of a vector: address and vector are on the stack. */
  storeLane(lane: number): void {
    this.#code.push(0xfd, 0x5a, 2, 0, lane);
  }
  /** One lane of a vector as an i32. */
  extract(lane: number): void {
    this.#code.push(0xfd, 0x1b, lane);
  }
  /** Put an i32 into one lane. */
  replace(lane: number): void {
    this.#code.push(0xfd, 0x1c, lane);
  }
  /** Choose 32-bit words of two vectors; 0 to 3 are of the first. */
  shuffle(...words: readonly [number, number, number, number]): void {
    this.#code.push(0xfd, 0x0d);
    for (const word of words) {
      for (let byte = 0; byte < 4; byte++) this.#code.push(word * 4 + byte);
    }
  }
  /** Fill memory: address, byte and length are on the stack. */
  fill(): void {
    this.#code.push(0xfc, 0x0b, 0);
  }
  /** Copy memory: destination, source and length are on the stack. */
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
  /** Bytes of instructions so far. */
  get length(): number {
    return this.#code.length;
  }
  /** The body as it stands in a module, in pieces. */
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
    return [head, this.#code, [PLAIN.end]];
  }
}

/** Bytes, to be put behind one another once. */
type Pieces = readonly (readonly number[])[];

function lengthOf(pieces: Pieces): number {
  return pieces.reduce((sum, { length }) => sum + length, 0);
}

/** The bits of an f32. */
export function f32Bits(value: number): number {
  return new Uint32Array(new Float32Array([value]).buffer)[0]!;
}

/** A module of functions over one memory, which is imported as `env.memory`. */
export class WasmModule {
  #functions: WasmFunction[] = [];
  #exports: { name: string; index: number }[] = [];

  /** Add a function and say its index; an exported one has a name. */
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

/** Pages of 64 KiB that a 32-bit memory can have. */
export const MEMORY_PAGES = 65536;
