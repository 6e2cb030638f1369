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

/** A recurrence. Its grid is `recurrenceGrid`. */
export interface RecurrenceOptions extends Sequences {
  readonly name: string;
  readonly rule: "delta" | "add";
  /** The decay is one of each key element; else of the head. */
  readonly perKey: boolean;
  readonly tokens: Expr;
  readonly heads: number;
  readonly kvHeads: number;
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
  const { dim, valueDim, heads, kvHeads } = o;
  const lanes = lanesOf(o);
  const tiles = Math.ceil(valueDim / lanes);
  const matrix = wgsl`((u32(sequence[t]) * ${heads} + head) * ${
    dim * valueDim
  } + column)`;
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
      let kv_head = head / ${heads / kvHeads};
      let column = group.x % ${tiles} * ${lanes} + lane;
      // What the state has for the key of the token at hand.
      var seen = 0.0;
      if (column < ${valueDim}) {
        ${
      eachRun(o, {
        begin: wgsl`
          let key = (t * ${kvHeads} + kv_head) * ${dim};
          let factor = ${factorAt(o, "t")};
          seen = 0.0;
          ${
          eachRow(dim, ["seen"], (i) =>
            wgsl`
            let old = select(state[${matrix} + ${i} * ${valueDim}], 0.0, position[t] == 0);
            let s = decay[${decayAt(o, wgsl`factor`, i)}] * old;
            cells[${i} * ${lanes} + lane] = s;
            seen_block = fma(s, keys[key + ${i}], seen_block);`)
        }`,
        token: wgsl`
          let at = t * ${heads} + head;
          let row = (t * ${kvHeads} + kv_head) * ${dim};
          let next_row = (next * ${kvHeads} + kv_head) * ${dim};
          let next_factor = ${factorAt(o, "next")};
          let value = values[at * ${valueDim} + column];
          let change = rate[at] * ${
          o.rule === "delta" ? wgsl`(value - seen)` : wgsl`value`
        };
          var result = 0.0;
          seen = 0.0;
          ${
          eachRow(dim, ["result", "seen"], (i) =>
            wgsl`
            let s = fma(keys[row + ${i}], change, cells[${i} * ${lanes} + lane]);
            result_block = fma(s, query[row + ${i}], result_block);
            let later = select(1.0, decay[${
              decayAt(o, wgsl`next_factor`, i)
            }], goes_on) * s;
            seen_block = fma(later, keys[next_row + ${i}], seen_block);
            cells[${i} * ${lanes} + lane] = later;`)
        }
          y[at * ${valueDim} + column] = result;`,
        end: wgsl`
          for (var i = 0u; i < ${dim}; i++) {
            state[${matrix} + i * ${valueDim}] = cells[i * ${lanes} + lane];
          }`,
      })
    }
      }`,
  });
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
