/**
 * A linear recurrence over tokens. A workgroup has some columns of a head's matrix, a lane each, and takes all tokens of a
 * block of sequences, one after another: columns never meet, so bits do not depend on how tokens are cut into runs. While
 * a sequence's tokens follow each other its columns are in workgroup memory, and each token is one pass over them: the
 * update, the result, and then the decay and the read of the key of the next token.
 */

import { EXACT } from "../../spec/numerics.ts";
import { SHARED_WORDS } from "../../spec/kernel/make.ts";
import type { Expr, Grid, Kernel, KernelText } from "./kernel.ts";
import { bindings, kernelOf, wgsl } from "./kernel.ts";
import { eachRun, sequenceBlocks, type Sequences } from "./pieces/sequences.ts";

/** Operands of a recurrence for each token. */
export type RecurrenceOperand = "query" | "keys" | "values" | "decay" | "rate";

/** A recurrence. Its grid is `recurrenceGrid`. */
export interface RecurrenceOptions extends Sequences {
  readonly name: string;
  /** "seen" and "erase": of `linearScan`, which see. */
  readonly rule: "delta" | "add" | "seen" | "erase";
  /** Sequences go on from a state, and leave one; else every one begins in the run. */
  readonly stateful: boolean;
  /** The decay is one of each key element; else of the head. */
  readonly perKey: boolean;
  readonly tokens: Expr;
  readonly heads: number;
  /** Heads of operands. */
  readonly of: {
    readonly query: number;
    readonly key: number;
    readonly value: number;
  };
  /** The binding of each operand: operands in one buffer have one. */
  readonly names: { readonly [O in RecurrenceOperand]: string };
  /** Elements of a key, and of a value. */
  readonly dim: number;
  readonly valueDim: number;
}

/** Columns of a workgroup: as many as fit into its memory, and as there are. */
function lanesOf({ dim, valueDim }: RecurrenceOptions): number {
  let lanes = 32;
  while (lanes > 1 && (lanes * dim > SHARED_WORDS || lanes / 2 >= valueDim)) {
    lanes /= 2;
  }
  return lanes;
}

/** One workgroup for each group of columns, in each block of sequences. */
export function recurrenceGrid(o: RecurrenceOptions): Grid {
  const tiles = Math.ceil(o.valueDim / lanesOf(o));
  return [o.heads * tiles, sequenceBlocks(o), 1];
}

/** Describe a recurrence. */
export function linearRecurrence(o: RecurrenceOptions): Kernel {
  const { dim, valueDim, heads, stateful } = o;
  const lanes = lanesOf(o);
  const tiles = Math.ceil(valueDim / lanes);
  return kernelOf({
    name: o.name,
    workgroupSize: lanes,
    bindings: bindings({
      query: "f32 [token, kvHead, dim]",
      keys: "f32 [token, kvHead, dim]",
      values: "f32 [token, head, valueDim]",
      decay: o.perKey ? "f32 [token, head, dim]" : "f32 [token, head]",
      rate: "f32 [token, head]",
      sequence: "i32 [token]",
      position: "i32 [token]",
    }, {
      y: "f32 [token, head, valueDim]",
      state: "f32 [sequence, head, dim, valueDim]",
    }),
    body: wgsl`
      var<workgroup> cells: array<f32, ${dim * lanes}>;
      let head = group.x / ${tiles};
      let column = group.x % ${tiles} * ${lanes} + lane;
      // What the state has for the key of the token at hand.
      var seen = 0.0;
      if (column < ${valueDim}) {
        ${
      eachRun(o, {
        begin: stateful ? beginState(o, lanes) : wgsl`
          seen = 0.0;
          for (var i = 0u; i < ${dim}; i++) { cells[i * ${lanes} + lane] = 0.0; }`,
        token: wgsl`
          let at = t * ${heads} + head;
          let row = ${rowOf(o, "key", "t")};
          let query_row = ${rowOf(o, "query", "t")};
          let next_row = ${rowOf(o, "key", "next")};
          let next_factor = ${factorAt(o, o.reverse ? "t" : "next")};
          let value = ${o.names.values}[(t * ${o.of.value} + head / ${
          heads / o.of.value
        }) * ${valueDim} + column];
          ${o.rule === "erase" ? erase(o, lanes) : update(o, lanes)}`,
        end: stateful
          ? wgsl`
          for (var i = 0u; i < ${dim}; i++) {
            state[${
            matrixAt(o)
          } + i * ${valueDim}] = cells[i * ${lanes} + lane];
          }`
          : wgsl``,
      })
    }
      }`,
  });
}

/** Where a token's matrix begins, in the column at hand. */
function matrixAt({ heads, dim, valueDim }: RecurrenceOptions): KernelText {
  return wgsl`((u32(sequence[t]) * ${heads} + head) * ${
    dim * valueDim
  } + column)`;
}

/** Where a token's query or key begins. */
function rowOf(
  { heads, dim, of }: RecurrenceOptions,
  operand: "query" | "key",
  t: string,
): KernelText {
  const own = of[operand];
  return wgsl`(${t} * ${own} + head / ${heads / own}) * ${dim}`;
}

/** The columns of a sequence's state, after the decay of its token; what they have for its key. */
function beginState(o: RecurrenceOptions, lanes: number): KernelText {
  const { dim, valueDim } = o;
  return wgsl`
    let key = ${rowOf(o, "key", "t")};
    let factor = ${factorAt(o, "t")};
    seen = 0.0;
    ${
    eachRow(dim, ["seen"], (i) =>
      wgsl`
      let old = select(state[${
        matrixAt(o)
      } + ${i} * ${valueDim}], 0.0, position[t] == 0);
      let s = ${o.names.decay}[${decayAt(o, wgsl`factor`, i)}] * old;
      cells[${i} * ${lanes} + lane] = s;
      seen_block = fma(s, ${o.names.keys}[key + ${i}], seen_block);`)
  }`;
}

/** A token's update and result, and in the same pass the decay of the next one and what there is for its key. */
function update(o: RecurrenceOptions, lanes: number): KernelText {
  const { rule } = o;
  const rest = rule === "add" ? wgsl`value` : wgsl`(value - seen)`;
  const sums = [
    ...rule === "seen" ? [] : ["result"],
    ...rule === "add" ? [] : ["seen"],
  ];
  return wgsl`
    let change = ${
    o.stateful || rule === "seen" ? wgsl`${o.names.rate}[at] * ${rest}` : rest
  };
    var result = ${rule === "seen" ? wgsl`seen` : wgsl`0.0`};
    seen = 0.0;
    ${
    eachRow(o.dim, sums, (i) =>
      wgsl`
      let s = fma(${o.names.keys}[row + ${i}], change, cells[${i} * ${lanes} + lane]);
      ${
        rule !== "seen" &&
        wgsl`result_block = fma(s, ${o.names.query}[query_row + ${i}], result_block);`
      }
      let later = select(1.0, ${o.names.decay}[${
        decayAt(o, wgsl`next_factor`, i)
      }], goes_on) * s;
      ${
        rule !== "add" &&
        wgsl`seen_block = fma(later, ${o.names.keys}[next_row + ${i}], seen_block);`
      }
      cells[${i} * ${lanes} + lane] = later;`)
  }
    y[at * ${o.valueDim} + column] = result;`;
}

/** What a token adds, then what there is for its key, which is erased; and the decay of the next one. */
function erase(o: RecurrenceOptions, lanes: number): KernelText {
  return wgsl`
    seen = 0.0;
    ${
    eachRow(o.dim, ["seen"], (i) =>
      wgsl`
      let s = fma(${o.names.query}[query_row + ${i}], value, cells[${i} * ${lanes} + lane]);
      cells[${i} * ${lanes} + lane] = s;
      seen_block = fma(s, ${o.names.keys}[row + ${i}], seen_block);`)
  }
    y[at * ${o.valueDim} + column] = seen;
    let change = -(${o.names.rate}[at] * seen);
    ${
    eachRow(o.dim, [], (i) =>
      wgsl`
      let s = fma(${o.names.keys}[row + ${i}], change, cells[${i} * ${lanes} + lane]);
      cells[${i} * ${lanes} + lane] = select(1.0, ${o.names.decay}[${
        decayAt(o, wgsl`next_factor`, i)
      }], goes_on) * s;`)
  }`;
}

/** Where the decays of a token's head begin. */
function factorAt({ heads, dim, perKey }: RecurrenceOptions, t: string) {
  return wgsl`(${t} * ${heads} + head) * ${perKey ? dim : 1}`;
}

function decayAt(
  { perKey }: RecurrenceOptions,
  first: KernelText,
  i: KernelText,
): KernelText {
  return perKey ? wgsl`${first} + ${i}` : first;
}

/** A pass over the rows of the columns, with sums in blocks as the contract has them. */
function eachRow(
  dim: number,
  sums: readonly string[],
  body: (i: KernelText) => KernelText,
): KernelText {
  const block = Math.min(EXACT.block, dim);
  const part = (size: number) => {
    const unrolled = size % 4 === 0 ? 4 : 1;
    return wgsl`
      ${sums.map((sum) => wgsl`var ${`${sum}_block`} = 0.0;`)}
      for (var j = 0u; j < ${size}; j += ${unrolled}) {
        @unroll (u < ${unrolled}) {
          let i = start + j + u;
          ${body(wgsl`i`)}
        }
      }
      ${sums.map((sum) => wgsl`${sum} += ${`${sum}_block`};`)}`;
  };
  const whole = Math.floor(dim / block) * block;
  return wgsl`
    for (var start = 0u; start < ${whole}; start += ${block}) {
      ${part(block)}
    }
    ${
    whole < dim && wgsl`
    for (var start = ${whole}u; start < ${dim}; start += ${block}) {
      ${part(dim - whole)}
    }`
  }`;
}
