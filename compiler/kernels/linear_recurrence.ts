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
  /** Granularity of decay: a head, each element of its keys or, in a scan, each element of its values. */
  readonly decayOf: keyof typeof DECAYS;
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
  /** Columns per lane, which share loads, if they divide those of a workgroup evenly. Default: 1. */
  readonly columns?: number | undefined;
}

/** Lanes of a workgroup, and columns of each: as many as fit into workgroup memory. */
function shapeOf(
  { dim, valueDim, columns: wanted = 1 }: RecurrenceOptions,
): {
  readonly lanes: number;
  readonly columns: number;
  readonly cells: number;
} {
  let cells = 32;
  while (cells > 1 && (cells * dim > SHARED_WORDS || cells / 2 >= valueDim)) {
    cells /= 2;
  }
  const divides = cells % wanted === 0 && valueDim % cells === 0;
  const columns = divides ? wanted : 1;
  return { lanes: cells / columns, columns, cells };
}

/** The binding of the decay. */
const DECAYS = {
  head: "f32 [token, head]",
  key: "f32 [token, head, dim]",
  value: "f32 [token, head, valueDim]",
} as const;

/** One workgroup per group of columns and block of sequences. */
export function recurrenceGrid(o: RecurrenceOptions): Grid {
  const tiles = Math.ceil(o.valueDim / shapeOf(o).cells);
  return [o.heads * tiles, sequenceBlocks(o), 1];
}

/** Creates the kernel of a recurrence. */
export function linearRecurrence(o: RecurrenceOptions): Kernel {
  const { dim, valueDim, heads, stateful } = o;
  const { lanes, cells } = shapeOf(o);
  const tiles = Math.ceil(valueDim / cells);
  return kernelOf({
    name: o.name,
    workgroupSize: lanes,
    bindings: bindings({
      query: "f32 [token, kvHead, dim]",
      keys: "f32 [token, kvHead, dim]",
      values: "f32 [token, head, valueDim]",
      decay: DECAYS[o.decayOf],
      rate: "f32 [token, head]",
      sequence: "i32 [token]",
      position: "i32 [token]",
      states: "i32 [sequence, use]",
    }, {
      y: "f32 [token, head, valueDim]",
      state: "f32 [sequence, head, dim, valueDim]",
    }),
    body: wgsl`
      var<workgroup> cells: array<f32, ${dim * cells}>;
      let head = group.x / ${tiles};
      let column = group.x % ${tiles} * ${cells} + lane;
      // The value of the state for the key of the current token.
      ${each(o, wgsl`var seen[c] = 0.0;`)}
      if (column < ${valueDim}) {
        ${
      eachRun(o, {
        begin: stateful ? beginState(o) : wgsl`
          ${each(o, wgsl`seen[c] = 0.0;`)}
          for (var i = 0u; i < ${dim}; i++) {
            ${each(o, wgsl`cells[${cellAt(o)}] = 0.0;`)}
          }`,
        token: wgsl`
          let at = t * ${heads} + head;
          let row = ${rowOf(o, "key", "t")};
          let query_row = ${rowOf(o, "query", "t")};
          let next_row = ${rowOf(o, "key", "next")};
          let next_factor = ${factorAt(o, o.reverse ? "t" : "next")};
          let value_at = (t * ${o.of.value} + head / ${
          heads / o.of.value
        }) * ${valueDim} + column;
          ${
          each(
            o,
            wgsl`let value[c] = ${o.names.values}[value_at + c * ${lanes}];`,
          )
        }
          ${o.rule === "erase" ? erase(o) : update(o)}`,
        end: stateful
          ? wgsl`
          for (var i = 0u; i < ${dim}; i++) {
            ${
            each(
              o,
              wgsl`state[${matrixAt(o, "write")} + i * ${valueDim}] = cells[${
                cellAt(o)
              }];`,
            )
          }
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
  } + column + c * ${shapeOf(o).lanes})`;
}

/** Code for each column `c` of a lane. */
function each(o: RecurrenceOptions, code: KernelText): KernelText {
  return wgsl`@unroll (c < ${shapeOf(o).columns}) { ${code} }`;
}

/** The index of the cell of row `i` in column `c`. */
function cellAt(o: RecurrenceOptions): KernelText {
  const { lanes, cells } = shapeOf(o);
  return wgsl`i * ${cells} + c * ${lanes} + lane`;
}

/** Offset of a token's query or key. */
function rowOf(
  { heads, dim, of }: RecurrenceOptions,
  operand: "query" | "key",
  t: string,
): KernelText {
  const count = of[operand];
  return wgsl`(${t} * ${count} + head / ${heads / count}) * ${dim}`;
}

/** Loads the columns of a sequence's state, applies the decay of its token, and computes their value for its key. */
function beginState(o: RecurrenceOptions): KernelText {
  const { valueDim } = o;
  return wgsl`
    let key = ${rowOf(o, "key", "t")};
    let factor = ${factorAt(o, "t")};
    ${each(o, wgsl`seen[c] = 0.0;`)}
    ${
    eachRow(o, ["seen"], {
      loads: wgsl`
      let k = ${o.names.keys}[key + i];
      let d = ${o.names.decay}[${
        o.decayOf === "key" ? wgsl`factor + i` : wgsl`factor`
      }];`,
      column: wgsl`
      let old = select(state[${
        matrixAt(o, "read")
      } + i * ${valueDim}], 0.0, position[t] == 0);
      let s = d * old;
      cells[${cellAt(o)}] = s;
      seen_block[c] = fma(s, k, seen_block[c]);`,
    })
  }`;
}

/** Update and result of a token, and in the same pass the decay and key product of the next one. */
function update(o: RecurrenceOptions): KernelText {
  const { rule, valueDim } = o;
  const { lanes } = shapeOf(o);
  const cell = cellAt(o);
  const rest = rule === "add" ? wgsl`value[c]` : wgsl`(value[c] - seen[c])`;
  const sums = [
    ...rule === "seen" ? [] : ["result"],
    ...rule === "add" ? [] : ["seen"],
  ];
  const scales = o.stateful || rule === "seen";
  return wgsl`
    ${scales && wgsl`let scale = ${o.names.rate}[at];`}
    ${
    each(
      o,
      wgsl`
      let change[c] = ${scales ? wgsl`scale * ${rest}` : rest};
      var result[c] = ${rule === "seen" ? wgsl`seen[c]` : wgsl`0.0`};
      seen[c] = 0.0;`,
    )
  }
    ${laterDecay(o, "head")}
    ${
    eachRow(o, sums, {
      loads: wgsl`
      let k = ${o.names.keys}[row + i];
      ${rule !== "seen" && wgsl`let q = ${o.names.query}[query_row + i];`}
      ${rule !== "add" && wgsl`let next_k = ${o.names.keys}[next_row + i];`}
      ${laterDecay(o, "row")}`,
      column: wgsl`
      let s = fma(k, change[c], cells[${cell}]);
      ${rule !== "seen" && wgsl`result_block[c] = fma(s, q, result_block[c]);`}
      let later = ${laterName(o)} * s;
      ${
        rule !== "add" &&
        wgsl`seen_block[c] = fma(later, next_k, seen_block[c]);`
      }
      cells[${cell}] = later;`,
    })
  }
    ${
    each(
      o,
      wgsl`y[at * ${valueDim} + column + c * ${lanes}] = result[c];`,
    )
  }`;
}

/** The update of a token, then the erased value for its key, and the decay of the next one. */
function erase(o: RecurrenceOptions): KernelText {
  const { lanes } = shapeOf(o);
  const cell = cellAt(o);
  return wgsl`
    let scale = ${o.names.rate}[at];
    ${each(o, wgsl`seen[c] = 0.0;`)}
    ${
    eachRow(o, ["seen"], {
      loads: wgsl`
      let q = ${o.names.query}[query_row + i];
      let k = ${o.names.keys}[row + i];`,
      column: wgsl`
      let s = fma(q, value[c], cells[${cell}]);
      cells[${cell}] = s;
      seen_block[c] = fma(s, k, seen_block[c]);`,
    })
  }
    ${
    each(
      o,
      wgsl`
      y[at * ${o.valueDim} + column + c * ${lanes}] = seen[c];
      let change[c] = -(scale * seen[c]);`,
    )
  }
    ${laterDecay(o, "head")}
    ${
    eachRow(o, [], {
      loads: wgsl`
      let k = ${o.names.keys}[row + i];
      ${laterDecay(o, "row")}`,
      column: wgsl`
      let s = fma(k, change[c], cells[${cell}]);
      cells[${cell}] = ${laterName(o)} * s;`,
    })
  }`;
}

/** Declares the decay of the next token, 1 without one, before the rows or for each row. */
function laterDecay(
  o: RecurrenceOptions,
  of: "head" | "row",
): KernelText | false {
  const { decayOf, names: { decay } } = o;
  if ((decayOf === "key") !== (of === "row")) return false;
  const at = {
    head: wgsl`next_factor`,
    key: wgsl`next_factor + i`,
    value: wgsl`next_factor + column + c * ${shapeOf(o).lanes}`,
  }[decayOf];
  const later = wgsl`select(1.0, ${decay}[${at}], goes_on)`;
  return decayOf === "value"
    ? each(o, wgsl`let later_decay[c] = ${later};`)
    : wgsl`let later_decay = ${later};`;
}

function laterName({ decayOf }: RecurrenceOptions): KernelText {
  return decayOf === "value" ? wgsl`later_decay[c]` : wgsl`later_decay`;
}

/** Offset of the decays of a token's head. */
function factorAt(
  { heads, dim, valueDim, decayOf }: RecurrenceOptions,
  t: string,
): KernelText {
  const count = { head: 1, key: dim, value: valueDim }[decayOf];
  return wgsl`(${t} * ${heads} + head) * ${count}`;
}

/** Code for row `i`. */
interface RowParts {
  /** Loads that the columns share. Compilers do not move them across the stores of a column. */
  readonly loads: KernelText;
  /** For each column `c`. */
  readonly column: KernelText;
}

/** A pass over the rows of the columns, with sums in the blocks of the contract. */
function eachRow(
  o: RecurrenceOptions,
  sums: readonly string[],
  { loads, column }: RowParts,
): KernelText {
  const { dim } = o;
  const block = Math.min(EXACT.block, dim);
  const part = (size: number) => {
    const unrolled = size % 4 === 0 ? 4 : 1;
    return wgsl`
      ${sums.map((sum) => each(o, wgsl`var ${`${sum}_block`}[c] = 0.0;`))}
      for (var j = 0u; j < ${size}; j += ${unrolled}) {
        @unroll (u < ${unrolled}) {
          let i = start + j + u;
          ${loads}
          ${each(o, column)}
        }
      }
      ${sums.map((sum) => each(o, wgsl`${sum}[c] += ${`${sum}_block`}[c];`))}`;
  };
  const blocksEnd = Math.floor(dim / block) * block;
  return wgsl`
    for (var start = 0u; start < ${blocksEnd}; start += ${block}) {
      ${part(block)}
    }
    ${
    blocksEnd < dim && wgsl`
    for (var start = ${blocksEnd}u; start < ${dim}; start += ${block}) {
      ${part(dim - blocksEnd)}
    }`
  }`;
}
