/**
 * A linear recurrence over tokens. A workgroup processes some columns of a head's matrix, one per lane, and all tokens
 * of a block of sequences, one after another. Columns are independent, so bits do not depend on how tokens are divided
 * into runs. For consecutive tokens of a sequence, its columns are in workgroup memory, and each token is one pass over
 * them: update, result, then the decay and key product of the next token.
 */

import { EXACT } from "../../spec/numerics.ts";
import { SHARED_WORDS } from "../../spec/kernel/make.ts";
import type { Expr, Grid, Kernel, KernelText } from "./kernel.ts";
import { bindings, kernelOf, wgsl } from "./kernel.ts";
import {
  eachRun,
  sequenceBlocks,
  type Sequences,
  stateRow,
} from "./pieces/sequences.ts";

/** Operands of a recurrence per token. */
export type RecurrenceOperand = "query" | "keys" | "values" | "decay" | "rate";

/** A recurrence. Its grid is `recurrenceGrid`. */
export interface RecurrenceOptions extends Sequences {
  readonly name: string;
  /** "seen" and "erase": see `linearScan`. */
  readonly rule: "delta" | "add" | "seen" | "erase";
  /** Whether sequences continue from a state and write one. Otherwise every sequence starts in the run. */
  readonly stateful: boolean;
  /** Whether the decay is per key element instead of per head. */
  readonly perKey: boolean;
  readonly tokens: Expr;
  readonly heads: number;
  /** Heads of operands. */
  readonly of: {
    readonly query: number;
    readonly key: number;
    readonly value: number;
  };
  /** The binding of each operand. Operands in one buffer share a binding. */
  readonly names: { readonly [O in RecurrenceOperand]: string };
  /** Elements of a key and of a value. */
  readonly dim: number;
  readonly valueDim: number;
}

/** Columns per workgroup: as many as fit into workgroup memory. */
function lanesOf({ dim, valueDim }: RecurrenceOptions): number {
  let lanes = 32;
  while (lanes > 1 && (lanes * dim > SHARED_WORDS || lanes / 2 >= valueDim)) {
    lanes /= 2;
  }
  return lanes;
}

/** One workgroup per group of columns and block of sequences. */
export function recurrenceGrid(o: RecurrenceOptions): Grid {
  const tiles = Math.ceil(o.valueDim / lanesOf(o));
  return [o.heads * tiles, sequenceBlocks(o), 1];
}

/** Creates the kernel of a recurrence. */
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
      states: "i32 [sequence, use]",
    }, {
      y: "f32 [token, head, valueDim]",
      state: "f32 [sequence, head, dim, valueDim]",
    }),
    body: wgsl`
      var<workgroup> cells: array<f32, ${dim * lanes}>;
      let head = group.x / ${tiles};
      let column = group.x % ${tiles} * ${lanes} + lane;
      // The value of the state for the key of the current token.
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
            matrixAt(o, "write")
          } + i * ${valueDim}] = cells[i * ${lanes} + lane];
          }`
          : wgsl``,
      })
    }
      }`,
  });
}

/** Offset of a token's matrix in the current column. */
function matrixAt(o: RecurrenceOptions, use: "read" | "write"): KernelText {
  const { heads, dim, valueDim } = o;
  return wgsl`((${stateRow(o, use)} * ${heads} + head) * ${
    dim * valueDim
  } + column)`;
}

/** Offset of a token's query or key. */
function rowOf(
  { heads, dim, of }: RecurrenceOptions,
  operand: "query" | "key",
  t: string,
): KernelText {
  const own = of[operand];
  return wgsl`(${t} * ${own} + head / ${heads / own}) * ${dim}`;
}

/** Loads the columns of a sequence's state, applies the decay of its token, and computes their value for its key. */
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
        matrixAt(o, "read")
      } + ${i} * ${valueDim}], 0.0, position[t] == 0);
      let s = ${o.names.decay}[${decayAt(o, wgsl`factor`, i)}] * old;
      cells[${i} * ${lanes} + lane] = s;
      seen_block = fma(s, ${o.names.keys}[key + ${i}], seen_block);`)
  }`;
}

/** Update and result of a token, and in the same pass the decay and key product of the next one. */
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

/** The update of a token, then the erased value for its key, and the decay of the next one. */
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

/** Offset of the decays of a token's head. */
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

/** A pass over the rows of the columns, with sums in the blocks of the contract. */
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
