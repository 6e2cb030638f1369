/**
 * The vector IR: a kernel for one vector of invocations, in words, vectors, masks, pointers and loops. `lower.ts`
 * creates it from a kernel tree; `runtime/cpu` prints it as WebAssembly, `runtime/native` as C.
 */

import type { CallName } from "../../spec/kernel/tree.ts";

/** A word, lanes of words, of f32, of f64 and of 64-bit integers, and an address of words. */
export type Type = "u" | "vu" | "vf" | "vd" | "vl" | "pointer";

/**
 * Location of a variable in the scratch memory of a thread, or in the part of it that each vector of a workgroup has.
 */
export interface ScratchSlot {
  readonly perVector: boolean;
  readonly offset: number;
}

/** A variable, identified by the object. Names are hints and need not be unique. */
export interface Local {
  readonly name: string;
  readonly type: Type;
  /** Undefined: in a register. */
  readonly slot?: ScratchSlot;
}

/** An array of words: a binding, by number, or workgroup memory in the scratch memory of a thread. */
export type Memory =
  & { readonly name: string }
  & (
    | { readonly binding: number }
    | { readonly offset: number; readonly length: number }
  );

/**
 * Operators, by the type of their operands: `u` words, `v` lanes of words, `f` lanes of f32, `d` of f64, `l` of 64-bit
 * integers. Comparisons of words are 0 or 1; those of lanes are masks. Divisors are not 0, and quotients in range;
 * shifts are modulo 32.
 * - `select(a, b, word)`, `pick(a, b, mask)`: a where the condition holds.
 * - `splat(word)`; `any`, `all` of a mask; `bits` is another type of the same bits, `v.bits` of f32, `l.bits` of f64.
 * - `v.shl`, `v.shr_*`: by one word. `v.shl_each`, …: by a vector.
 * - `v.to_s`, `v.to_u`: f32 to integers, saturating, 0 for NaN; `v.whole`: as `v.to_s`, any bits where it is out of
 * range.
 * - `f.from_s`, `f.from_u`: of integers. `l.from_d`: of whole f64, saturating to 32 bits; `d.from_l`: of integers of 32
 * bits.
 * - `v.dot4`: of each lane, the dot product of four i8; `v.dot4_unsigned` of four u8 and four i8; `v.dot4_small` of
 * four
 *   u8 below 64 and four i8, `v.dot4_tiny` of four u8 below 32.
 * - `f.min(a, b)` is b < a ? b : a, `f.max(a, b)` is a < b ? b : a. `f.fma` is rounded twice, unless numerics are fast.
 */
const OPERATORS = {
  u: "add sub mul and or xor shl shr_s shr_u div_s div_u rem_s rem_u eq ne lt_s lt_u le_s le_u gt_s gt_u ge_s ge_u eqz select",
  v: "add sub mul and or xor shl shr_s shr_u div_s div_u rem_s rem_u eq ne lt_s lt_u le_s le_u gt_s gt_u ge_s ge_u min_s min_u max_s max_u neg not andnot any all splat pick select bits whole shl_each shr_each_s shr_each_u to_s to_u dot4 dot4_unsigned dot4_small dot4_tiny",
  f: "add sub mul div min max neg abs floor ceil trunc nearest sqrt fma bits lt le gt ge eq ne pick select from_s from_u",
  d: "add sub mul div min max abs lt nearest pick bits from_l",
  l: "add sub and or xor shl shr_u bits from_d",
} as const;

type Words<S extends string> = S extends `${infer A} ${infer B}` ? A | Words<B>
  : S;
type Family = keyof typeof OPERATORS;

/** An operator. */
export type Op = {
  [F in Family]: `${F}.${Words<(typeof OPERATORS)[F]>}`;
}[Family];

/** Types of the operands of a family. */
const OPERANDS = { u: "u", v: "vu", f: "vf", d: "vd", l: "vl" } as const;

/** Elements of a load or a store: one, one for all lanes, consecutive ones, or any. */
export type Form = "one" | "splat" | "run" | "anywhere";

/** Units of indices and offsets: words, or bytes, from which on four are loaded. */
interface Counted {
  readonly bytes: boolean;
}

interface Node<O extends string, T extends Type = Type> {
  readonly op: O;
  readonly type: T;
  readonly args: readonly Value[];
}

/** A value. Nodes that are used more than once in a statement are evaluated once. */
export type Value =
  | Node<"const"> & { readonly value: number | bigint }
  /** 0, stride, 2 * stride, … */
  | Node<"iota", "vu"> & { readonly stride: number }
  | Node<"get"> & { readonly local: Local }
  | Node<"apply"> & { readonly fn: Op }
  /** A function of `math.ts`. */
  | Node<"call", "vf"> & { readonly fn: CallName }
  /** `body`, in f64, computed for lanes of f32 and rounded; `params` represent the arguments. */
  | Node<"wide", "vf"> & {
    readonly params: readonly Local[];
    readonly body: Value;
  }
  /** Bytes of a table of 16, indexed by the lower halves of bytes. */
  | Node<"lookup", "vu"> & { readonly table: readonly number[] }
  /**
   * The number in the lowest four bits of the second argument, shifted right by `shift`, selects one of 16 floats. The
   * first argument is the same value, from bytes of a `lookup`.
   */
  | Node<"entry", "vf"> & {
    readonly shift: number;
    readonly floats: readonly number[];
  }
  /** One lane's bits. */
  | Node<"lane", "u"> & { readonly lane: number }
  /**
   * Elements at an index. An index out of bounds loads some other element of the array. `check`: `none` if the index is
   * known to be in bounds, `called` if the load rarely runs.
   */
  | Node<"load"> & Counted & {
    readonly from: Memory;
    readonly form: Form;
    readonly check: "inline" | "called" | "none";
  }
  /** Elements at a pointer, known to be in bounds; of lanes that are `apart`. */
  | Node<"read"> & Counted & {
    readonly form: Form;
    readonly offset: number;
    readonly apart: number;
  }
  /** The address of an element of an array, or relative to a pointer: the last argument is the index. */
  | Node<"address", "pointer"> & Counted & { readonly of?: Memory }
  /** Whether base + constant, or base + constant + stride * last, is in bounds, in 64 bits. */
  | Node<"within", "u"> & Counted & {
    readonly of: Memory;
    readonly constant: number;
  }
  /** A vector of a transposed tile. */
  | Node<"tile"> & { readonly tile: Local };

/** The target of `leave`, which continues after it. */
export interface Label {
  readonly name: string;
}

/**
 * Prefetches of a tile: further `along` its rows, in the `next` rows, or in the `stream` of adjacent rows; `later`
 * queues them.
 */
export type Ahead = "along" | "later" | "next" | "stream" | "none";

/** A statement. */
export type Statement =
  /** `declares`: it is the first in its block, and is not read after the block. */
  | {
    readonly op: "set";
    readonly local: Local;
    readonly value: Value;
    readonly declares: boolean;
  }
  | { readonly op: "declare"; readonly local: Local }
  /** Drops elements out of bounds, and lanes without a bit in the mask. */
  | {
    readonly op: "store";
    readonly to: Memory;
    readonly form: Exclude<Form, "splat">;
    readonly index: Value;
    readonly value: Value;
    readonly mask: Value | undefined;
  }
  /** Stores a word or the lanes of a vector at a pointer, known to be in bounds. */
  | {
    readonly op: "write";
    readonly pointer: Local;
    readonly offset: number;
    readonly value: Value;
  }
  | {
    readonly op: "if";
    readonly condition: Value;
    readonly then: readonly Statement[];
    readonly else: readonly Statement[];
  }
  /**
   * Counts from `from` while below `to`. `unroll`: iterations that a compiler may unroll. `long`: it checks for
   * termination requests.
   */
  | {
    readonly op: "count";
    readonly counter: Local;
    readonly from: Value;
    readonly to: Value;
    readonly step: Value;
    readonly body: readonly Statement[];
    readonly unroll: number;
    readonly long: boolean;
  }
  /** Runs `head`, then `body` if the condition holds, until it does not. */
  | {
    readonly op: "while";
    readonly head: readonly Statement[];
    readonly condition: Value;
    readonly body: readonly Statement[];
    readonly long: boolean;
  }
  /** Runs `body` until the condition does not hold. */
  | {
    readonly op: "repeat";
    readonly body: readonly Statement[];
    readonly condition: Value;
  }
  | {
    readonly op: "block";
    readonly label: Label;
    readonly body: readonly Statement[];
  }
  | { readonly op: "leave"; readonly label: Label }
  /**
   * Runs `body`, unless no other `once` was run since it was run for the last workgroup with the same x and z, whose
   * workgroup memory is still there. Emitters may always run it. `number`: of the statement in its program.
   */
  | {
    readonly op: "once";
    readonly number: number;
    readonly body: readonly Statement[];
  }
  /** Sets workgroup memory to 0. */
  | { readonly op: "zero"; readonly offset: number; readonly bytes: number }
  /** Selects the current vector's part of scratch memory. */
  | { readonly op: "own" }
  /**
   * Loads some words per lane, with a stride of `apart` elements, and transposes them into a tile. `ahead`: what it
   * prefetches.
   */
  | Counted & {
    readonly op: "turn";
    readonly tile: Local;
    readonly from: Memory;
    readonly pointer: Local;
    readonly constant: number;
    readonly apart: number;
    readonly words: number;
    readonly ahead: Ahead;
    /** Whether its words are multiplied by several rows. */
    readonly several: boolean;
  }
  /**
   * Prefetches the line at an address, which may be out of bounds, for loads or for stores. `stream`: it is used much
   * later.
   */
  | {
    readonly op: "prefetch";
    readonly address: Value;
    readonly write: boolean;
    readonly stream: boolean;
  }
  /** Prefetches some of the lines that a `turn` with `later` queued. */
  | { readonly op: "dequeue" };

/**
 * A kernel, or one part of a merged one: the work of a workgroup. Emitters set `groups`, the numbers of the workgroup.
 */
export interface Program {
  readonly memories: readonly Memory[];
  readonly groups: readonly Local[];
  /** The number of the first invocation of the current vector. */
  readonly first: Local;
  readonly body: readonly Statement[];
  /** Bytes of scratch memory, the start of the vectors' parts in it, and their length. */
  readonly scratch: number;
  readonly parts: number;
  readonly partBytes: number;
}

/** Types of results that differ from those of operands. */
const RESULTS: { readonly [O in Op]?: Type } = {
  "v.any": "u",
  "v.all": "u",
  "f.eq": "vu",
  "f.ne": "vu",
  "f.lt": "vu",
  "f.le": "vu",
  "f.gt": "vu",
  "f.ge": "vu",
  "d.lt": "vl",
};

/** A variable. */
export function newLocal(name: string, type: Type, slot?: ScratchSlot): Local {
  return slot ? { name, type, slot } : { name, type };
}
/** A variable's value. */
export function get(local: Local): Value {
  return { op: "get", type: local.type, local, args: [] };
}
/** A constant: all lanes of a vector. */
export function constant(type: Type, value: number | bigint): Value {
  return { op: "const", type, value, args: [] };
}
/** A word. */
export function word(value: number): Value {
  return constant("u", value >>> 0);
}
/** An operator's result. */
export function apply(fn: Op, ...args: readonly Value[]): Value {
  const type = RESULTS[fn] ?? OPERANDS[fn[0] as Family];
  return { op: "apply", type, fn, args };
}

/** An operand. A number is a constant. */
export type Operand = Value | number | bigint;

/** The operators of a family, as functions. */
function operators<F extends Family>(
  family: F,
): { readonly [N in Words<(typeof OPERATORS)[F]>]: Operator } {
  const functions = OPERATORS[family].split(" ").map((name) => {
    const shift = /^sh[lr](_[su])?$/.test(name);
    const of: Operator = (...operands) => {
      const args = operands.map((operand, i) =>
        typeof operand === "object"
          ? operand
          : constant(shift && i === 1 ? "u" : OPERANDS[family], operand)
      );
      return apply(`${family}.${name}` as Op, ...args);
    };
    return [name, of] as const;
  });
  return Object.fromEntries(functions) as ReturnType<typeof operators<F>>;
}
type Operator = (...operands: readonly Operand[]) => Value;

/** Operators of words. */
export const u = operators("u");
/** Operators of lanes of words. */
export const v = operators("v");
/** Operators of lanes of f32. */
export const f = operators("f");
/** Operators of lanes of f64. */
export const d = operators("d");
/** Operators of lanes of 64-bit integers. */
export const l = operators("l");

/** One lane's bits. */
export function laneOf(value: Value, lane: number): Value {
  return { op: "lane", type: "u", lane, args: [value] };
}
/** The address of an element. */
export function addressOf(
  of: Memory | Value,
  index: Value,
  bytes = false,
): Value {
  return "op" in of
    ? { op: "address", type: "pointer", bytes, args: [of, index] }
    : { op: "address", type: "pointer", bytes, of, args: [index] };
}
/** Whether all of one or more conditions hold. */
export function allOf(conditions: readonly Value[]): Value {
  return conditions.reduce((a, b) => u.and(a, b));
}
/**
 * Whether base + constant, or base + constant + stride * last, is in bounds. `args`: base, and perhaps stride and last.
 */
export function isWithin(
  of: Memory,
  args: readonly Value[],
  { constant, bytes }: { readonly constant: number; readonly bytes: boolean },
): Value {
  return { op: "within", type: "u", of, constant, bytes, args };
}

/** Nodes with operands that are used more than once in values. */
export function repeatedIn(values: readonly Value[]): Set<Value> {
  const [seen, found] = [new Set<Value>(), new Set<Value>()];
  const visit = (value: Value) => {
    if (value.args.length === 0) return;
    if (seen.has(value)) return found.add(value);
    seen.add(value);
    value.args.forEach(visit);
  };
  values.forEach(visit);
  return found;
}
