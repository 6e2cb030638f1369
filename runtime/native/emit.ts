/**
 * Prints the vector IR as C: words are `u`, vectors those of `vectors.ts`, variables those of their declaring block.
 */

import { OPERATOR_TEXTS } from "../../spec/kernel/operators.ts";
import type {
  Local,
  Memory,
  Op,
  Program,
  Statement,
  Type,
  Value,
} from "../vector/ir.ts";
import { repeatedIn } from "../vector/ir.ts";
import { STREAM_APART } from "../vector/tiled_loop.ts";
import { ARRAYS, BLOCKS, STREAM } from "./along.ts";
import { sharedBroadcasts } from "./broadcast.ts";
import { constantInC } from "./constant.ts";
import { Writer } from "./writer.ts";

/** An array in memory: its address and its length. */
interface ArrayNames {
  readonly address: string;
  readonly length: string;
}

/** Maximum nesting of brackets in one expression. */
const MAX_NESTING = 16;

const COMPARES: ReadonlySet<string> = new Set(
  ["eq", "ne", "lt", "le", "gt", "ge"],
);
/** Types of signed operands, by operator family. */
const SIGNED: { readonly [family: string]: string } = { u: "i", v: "vi" };

/** Operators that are not printed as a call of a function with their name. */
const TEXTS: { readonly [O in Op]?: (...args: string[]) => string } = {
  "u.eqz": (a) => `(u)(${a} == 0)`,
  "u.select": (a, b, c) => `${c} ? ${a} : ${b}`,
  "v.select": (a, b, c) => `${c} ? ${a} : ${b}`,
  "f.select": (a, b, c) => `${c} ? ${a} : ${b}`,
  "v.pick": (a, b, c) => `pick(${c}, ${a}, ${b})`,
  "f.pick": (a, b, c) => `pickf(${c}, ${a}, ${b})`,
  "d.pick": (a, b, c) => `pickd(${c}, ${a}, ${b})`,
  "v.neg": (a) => `-${a}`,
  "f.neg": (a) => `-${a}`,
  "v.not": (a) => `~${a}`,
  "v.andnot": (a, b) => `${a} & ~${b}`,
  "v.splat": (a) => `splat(${a})`,
  "v.bits": (a) => `(vu)${a}`,
  "f.bits": (a) => `(vf)${a}`,
  "d.bits": (a) => `(vd)${a}`,
  "l.bits": (a) => `(vl)${a}`,
  "l.shr_u": (a, b) => `(vl)((vul)${a} >> ${b})`,
};

/** Nesting depth of brackets in a text. */
function nesting(text: string): number {
  let [depth, max] = [0, 0];
  for (const character of text) {
    if (character === "(") max = Math.max(max, ++depth);
    else if (character === ")") depth--;
  }
  return max;
}

/** The binding whose rows are prefetched along loads, their largest stride in bytes, and the words of a load. */
export interface Along {
  readonly binding: number;
  readonly apart: number;
  readonly words: number;
}

type Turn = Extract<Statement, { op: "turn" }>;

/** Emits into one function. */
export class Emitter {
  readonly writer: Writer;
  readonly arrays = new Map<Memory, ArrayNames>();
  /** Prefetches of this function and of earlier parts of its kernel. */
  along: Along | undefined;
  readonly #names = new Map<object, string>();
  #program: Program | undefined;
  #repeated = new Set<Value>();
  #saved = new Map<Value, string>();
  #shared: ReadonlySet<Value> = new Set();

  constructor(writer: Writer, along?: Along) {
    this.writer = writer;
    this.along = along;
  }

  /** The name of a variable or a label. */
  name(of: { readonly name: string }): string {
    let name = this.#names.get(of);
    if (name === undefined) {
      name = this.writer.name(of.name);
      this.#names.set(of, name);
    }
    return name;
  }

  /** The texts of the values of a statement, after temporaries. */
  values(...values: readonly Value[]): string[] {
    const outer = [this.#repeated, this.#saved] as const;
    this.#repeated = repeatedIn(values);
    this.#saved = new Map();
    const texts = values.map((value) => this.#value(value));
    [this.#repeated, this.#saved] = outer;
    return texts;
  }

  #value(value: Value): string {
    const known = this.#saved.get(value);
    if (known !== undefined) return known;
    const text = this.#text(value);
    if (!this.#repeated.has(value) && nesting(text) <= MAX_NESTING) return text;
    const name = this.writer.name("t");
    this.writer.line(`${declared(value.type, name)} = ${text};`);
    this.#saved.set(value, name);
    return name;
  }

  #text(value: Value): string {
    const args = value.args;
    const strided = value.op === "load" ? stridedBytes(value) : undefined;
    const emitsOperands = ["apply", "wide", "address"].includes(value.op) ||
      strided !== undefined;
    const texts = emitsOperands ? [] : args.map((arg) => this.#value(arg));
    const [a, b, c] = texts;
    const cast = `(${value.type})`;
    switch (value.op) {
      case "const":
        return constantInC(value, false);
      case "iota":
        return value.stride === 1 ? "IOTA" : `(IOTA * ${value.stride >>> 0}u)`;
      case "get":
        return this.#addressOf(value.local);
      case "apply":
        return `(${this.#apply(value.fn, args)})`;
      case "call":
        return `math_${value.fn}(${texts.join(", ")})`;
      case "wide": {
        value.params.forEach((param, i) => {
          const wide = `widened(${this.#value(args[i]!)})`;
          this.writer.line(`vd ${this.name(param)} = ${wide};`);
        });
        return `narrowed(${this.values(value.body)[0]!})`;
      }
      case "lookup": {
        const table = value.table.map((word) => `${word}u`).join(", ");
        return `v_lookup(${a}, ${table})`;
      }
      case "entry": {
        const floats = value.floats.map((n) => `${n}.0f`).join(", ");
        return `v_entry(${a}, ${b}, ${value.shift}, ${floats})`;
      }
      case "lane":
        return `(${a})[${value.lane}]`;
      case "load": {
        const { address, length } = this.arrays.get(value.from)!;
        if (strided) {
          const first = this.#value(strided.first);
          return value.check === "none"
            ? `strided(ON(${address}, ${first}), ${strided.apart})`
            : `strided_bytes(${address}, ${length}, ${first}, ${strided.apart})`;
        }
        if (value.check === "none") return this.#readAt(value, address, a!);
        const at = `${
          value.bytes ? "_bytes" : ""
        }(${address}, ${length}, ${a})`;
        if (value.form === "one") return `load${at}`;
        if (value.form === "splat") return `(${cast}splat(load${at}))`;
        if (value.form === "run") return `(${cast}load_run${at})`;
        return `(${cast}gather${
          value.check === "called" ? "_called" : ""
        }${at})`;
      }
      case "read":
        return value.bytes && value.form === "anywhere"
          ? `strided(ON(${a}, ${value.offset}), ${value.apart})`
          : this.#readAt(value, a!, `${value.offset}`);
      case "address": {
        const from = value.of
          ? this.arrays.get(value.of)!.address
          : this.#value(args[0]!);
        const by = this.#long(args.at(-1)!);
        return value.bytes ? `ON(${from}, ${by})` : `(${from} + ${by})`;
      }
      case "within": {
        // 64-bit arithmetic does not wrap here.
        const last = c === undefined ? "" : ` + (uint64_t)${b} * ${c}`;
        const { length } = this.arrays.get(value.of)!;
        const all = value.bytes ? `4 * (uint64_t)${length}` : length;
        return `((uint64_t)${a} + ${value.constant}${last} < ${all})`;
      }
      case "tile":
        return `(${cast}${this.name(value.tile)}[${a}])`;
    }
  }

  /** Elements from `index` on, in bounds: one, one for all lanes, or consecutive words. */
  #readAt(
    value: Extract<Value, { op: "load" | "read" }>,
    from: string,
    index: string,
  ): string {
    const { type, form, bytes } = value;
    const word = bytes
      ? `*(const bytes *)ON(${from}, ${index})`
      : `${from}[${index}]`;
    if (form === "one") return word;
    if (form === "run") {
      return `((${type})*(const run_of_words *)(${from} + ${index}))`;
    }
    return type === "vf" && !this.#shared.has(value)
      ? `splatf(number(${word}))`
      : `((${type})splat(${word}))`;
  }

  /** An index in 64 bits: compilers find induction pointers only without wrapping. */
  #long(index: Value): string {
    const [a, b] = index.args;
    if (index.op === "apply" && index.fn === "u.add") {
      return `(${this.#long(a!)} + ${this.#long(b!)})`;
    }
    if (index.op === "apply" && index.fn === "u.mul") {
      return `${this.#long(a!)} * ${this.#value(b!)}`;
    }
    return `(uint64_t)${this.#value(index)}`;
  }

  #apply(fn: Op, args: readonly Value[]): string {
    const write = TEXTS[fn];
    const sum = fn === "v.add" ? this.#sumOfProducts(args) : undefined;
    if (sum !== undefined) return sum;
    const [family, full] = fn.split(".") as [string, string];
    const name = full.replace(/(_each)?(_[su])?$/, "");
    const operator = OPERATOR_TEXTS[name];
    if (!operator || write) {
      const texts = args.map((arg) => this.#value(arg));
      return write ? write(...texts) : `${family}_${full}(${texts.join(", ")})`;
    }
    const [x, y] = args as [Value, Value];
    const signed = full.endsWith("_s") ? SIGNED[family]! : undefined;
    // A vector and a constant are combined without a vector of the constant.
    const [a, b] = [[x, y] as const, [y, x] as const].map(([one, other]) => {
      const plain = one.op === "const" && other.op !== "const";
      const text = plain ? constantInC(one, true) : this.#value(one);
      if (!signed) return text;
      return `(${plain || one.type === "u" ? "i" : signed})${text}`;
    });
    const by = name !== "shl" && name !== "shr" || family === "l"
      ? b
      : y.op === "const"
      ? `${Number(y.value) & 31}`
      : `(${b} & 31)`;
    const result = family === "u" ? "u" : family === "d" ? "vl" : "vu";
    const text = `${a} ${operator} ${by}`;
    return signed || COMPARES.has(name) ? `(${result})(${text})` : text;
  }

  /** A sum with products of bytes: processors multiply and add at once, or add small products in 16 bits. */
  #sumOfProducts(args: readonly Value[]): string | undefined {
    const isOnce = (value: Value, ...fns: readonly Op[]) =>
      value.op === "apply" && fns.includes(value.fn) &&
      !this.#repeated.has(value);
    const termsOf = (value: Value): readonly Value[] =>
      isOnce(value, "v.add") ? value.args.flatMap(termsOf) : [value];
    const terms = args.flatMap(termsOf);
    const [all, small, tiny] =
      (["v.dot4_unsigned", "v.dot4_small", "v.dot4_tiny"] as const).map((fn) =>
        terms.filter((term) => isOnce(term, fn))
      ) as [Value[], Value[], Value[]];
    const products = [...all, ...small, ...tiny];
    if (products.length === 0) return undefined;
    const others = terms.filter((term) => !products.includes(term));
    const texts = (values: readonly Value[]) =>
      values.map((value) => this.#value(value));
    let sum = others.length === 0
      ? "((vu){ 0 })"
      : `(${texts(others).join(" + ")})`;
    const add = (name: string, products: readonly Value[]) => {
      const factors = texts(products.flatMap(({ args }) => args)).join(", ");
      sum = `${name}(${sum}, ${factors})`;
    };
    for (const product of all) add("v_dot4_unsigned_add", [product]);
    while (tiny.length >= 4) add("v_dot16_tiny_add", tiny.splice(0, 4));
    small.push(...tiny);
    while (small.length >= 2) add("v_dot8_small_add", small.splice(0, 2));
    if (small.length > 0) add("v_dot4_small_add", small);
    return sum;
  }

  /** A variable in memory or in a register. */
  #addressOf(local: Local): string {
    const { slot } = local;
    if (!slot) return this.name(local);
    return `(*(${local.type} *)(${
      slot.perVector ? "own" : "scratch"
    } + ${slot.offset}))`;
  }

  /** Emits the work of a workgroup. */
  program(program: Program): void {
    this.#program = program;
    this.list(program.body);
  }

  /** Emits statements. */
  list(body: readonly Statement[]): void {
    const outer = this.#shared;
    this.#shared = sharedBroadcasts(body);
    for (const s of body) this.#statement(s);
    this.#shared = outer;
  }

  #block(head: string, body: readonly Statement[], long = false): void {
    this.writer.block(head, () => {
      if (long) this.writer.line("if (*stop) return;");
      this.list(body);
    });
  }

  #statement(s: Statement): void {
    const { writer } = this;
    switch (s.op) {
      case "declare":
        return writer.line(
          `${declared(s.local.type, this.name(s.local))} = { 0 };`,
        );
      case "set": {
        const [value] = this.values(s.value);
        const name = this.#addressOf(s.local);
        const declares = s.declares && !s.local.slot;
        return writer.line(
          `${declares ? declared(s.local.type, name) : name} = ${value};`,
        );
      }
      case "store":
        return this.#store(s);
      case "write": {
        const [value] = this.values(s.value);
        const type = s.value.type === "u" ? "word" : "run_of_words";
        const to = `${this.name(s.pointer)} + ${s.offset}`;
        return writer.line(`*(${type} *)(${to}) = ${value};`);
      }
      case "if": {
        const [condition] = this.values(s.condition);
        this.#block(`if (${condition})`, s.then);
        if (s.else.length > 0) this.#block("else", s.else);
        return;
      }
      case "count": {
        const [from, to, step] = this.values(s.from, s.to, s.step);
        const name = this.name(s.counter);
        if (s.unroll > 1) writer.line(`UNROLL(${s.unroll})`);
        return this.#block(
          `for (u ${name} = ${from}; ${name} < ${to}; ${name} += ${step})`,
          s.body,
          s.long,
        );
      }
      case "while":
        return writer.block("for (;;)", () => {
          if (s.long) writer.line("if (*stop) return;");
          this.list(s.head);
          writer.line(`if (!${this.values(s.condition)[0]!}) break;`);
          this.list(s.body);
        });
      case "repeat":
        this.#block("do", s.body);
        return writer.line(`while ${this.values(s.condition)[0]!};`);
      case "block":
        this.#block("", s.body);
        return writer.line(`${this.name(s.label)}:;`);
      case "leave":
        return writer.line(`goto ${this.name(s.label)};`);
      case "once": {
        const [x, , z] = this.#program!.groups.map((local) => this.name(local));
        const key = `${s.number}ull << 32 | ${z} << 16 | ${x}`;
        return writer.block(`if (saved != (${key}))`, () => {
          writer.line(`saved = ${key};`);
          this.list(s.body);
        });
      }
      case "zero":
        return writer.line(
          `__builtin_memset(scratch + ${s.offset}, 0, ${s.bytes});`,
        );
      case "own": {
        const { first, parts, partBytes } = this.#program!;
        return writer.line(
          `own = scratch + ${parts} + ${
            this.name(first)
          } / LANES * ${partBytes};`,
        );
      }
      case "turn":
        return this.#turn(s);
      case "prefetch": {
        const [address] = this.values(s.address);
        const write = s.write ? 1 : 0;
        const level = s.stream ? "STREAM_LEVEL" : 3;
        return writer.line(
          `__builtin_prefetch(${address}, ${write}, ${level});`,
        );
      }
      case "dequeue":
        return writer.line("prefetch_ahead(&later);");
    }
  }

  /** Loads a tile, and prefetches. */
  #turn(s: Turn): void {
    const { writer } = this;
    const { address } = this.arrays.get(s.from)!;
    const tile = this.name(s.tile);
    writer.line(`vu ${tile}[${s.words}];`);
    const width = s.bytes ? 1 : 4;
    const from = `(const char *)${this.name(s.pointer)}`;
    const at = `${from} - (const char *)${address} + ${width * s.constant}`;
    // Between the codes of blocks there are scales.
    const step = (s.bytes ? 4.5 : 4) * s.words;
    const later = s.ahead === "later" ? "&later" : "0";
    const isAlong = s.ahead === "along";
    if (isAlong && "binding" in s.from) this.#noteAlong(s, s.from.binding);
    const along = isAlong ? `&along_${s.several ? "several" : "one"}` : "0";
    const apart = width * s.apart;
    const isStream = s.ahead === "stream";
    // Loads from the first `own` bytes of a line prefetch; with 0 bytes, none does.
    const own = s.ahead === "none" || isStream ? 0 : step;
    writer.line(
      `turn${s.words}(${tile}, ${address}, ${at}, ${apart}, ${own}, ${later}, ${along});`,
    );
    if (isStream) {
      const load = `(const char *)${address} + (${at})`;
      // A load of complete rows starts at their first byte.
      const inRow = step < apart ? `(${at}) % ${apart}` : "0";
      const bytes = Math.min(step, apart);
      writer.line(`prefetch_stream(${load}, ${inRow}, ${bytes});`);
    }
  }

  /** Notes the binding and the kind of a load beside which lines are prefetched. */
  #noteAlong(s: Turn, binding: number): void {
    const apart = (s.bytes ? 1 : 4) * s.apart;
    const known = this.along ?? { binding, apart, words: s.words };
    const flags = (s.bytes ? BLOCKS : 0) |
      (known.binding === binding ? 0 : ARRAYS) |
      (apart <= STREAM_APART ? STREAM : 0);
    this.along = {
      ...known,
      apart: Math.max(known.apart, apart),
      words: known.words | flags,
    };
  }

  #store(s: Extract<Statement, { op: "store" }>): void {
    const { address, length } = this.arrays.get(s.to)!;
    const [index, value] = this.values(s.index, s.value);
    const [mask] = s.mask ? this.values(s.mask) : [undefined];
    const args = [address, length, index, value];
    const names = { one: "store", run: "store_run", anywhere: "scatter" };
    const masked = s.form !== "run" || mask === undefined
      ? ""
      : "binding" in s.to
      ? "_masked"
      : "_replaced";
    if (s.form === "anywhere") args.push(mask ?? "~(vu){ 0 }");
    else if (masked) args.push(mask);
    this.writer.line(`${names[s.form]}${masked}(${args.join(", ")});`);
  }
}

/** The first byte of a load of bytes at a known distance, and the distance. */
function stridedBytes(
  { form, bytes, check, args: [index] }: Extract<Value, { op: "load" }>,
): { readonly first: Value; readonly apart: number } | undefined {
  if (form !== "anywhere" || !bytes || check === "called") return undefined;
  if (index?.op !== "apply" || index.fn !== "v.add") return undefined;
  const [splat, iota] = index.args;
  return splat?.op === "apply" && splat.fn === "v.splat" && iota?.op === "iota"
    ? { first: splat.args[0]!, apart: iota.stride }
    : undefined;
}

function declared(type: Type, name: string): string {
  return type === "pointer" ? `const word *${name}` : `${type} ${name}`;
}
