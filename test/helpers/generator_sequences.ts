/** Small launches of the generators of convolutions, recurrences and shifts over sequences. */

import { conv1d, conv1dGrid } from "../../compiler/kernels/conv1d.ts";
import { lengthAt } from "../../compiler/kernels/kernel.ts";
import {
  linearRecurrence,
  recurrenceGrid,
} from "../../compiler/kernels/linear_recurrence.ts";
import { shift } from "../../compiler/kernels/shift.ts";
import { elementwiseGrid } from "../../spec/kernel/elementwise.ts";
import { BATCHES } from "./generator_attention.ts";
import { product } from "./generator_sums.ts";
import type { Launch } from "./launch_faults.ts";
import { waves } from "./waves.ts";

const name = "kernel";
const tokens = lengthAt(0);

/** Operands that all of these kernels read. */
function ofTokens(batch: (typeof BATCHES)[number]) {
  return {
    lengths: [batch.length],
    sequence: batch.map(([sequence]) => sequence),
    position: batch.map(([, position]) => position),
  };
}

/** State rows of two sequences: [read, written]. */
const ROWS = [[1, 3], [1, 0]] as const;

/** Elements of the state that tokens of a batch update. `rows`: states are indexed by `ROWS`, otherwise by sequence. */
function updated(
  batch: (typeof BATCHES)[number],
  each: number,
  rows = false,
): number[] {
  const sequences = new Set(batch.map(([sequence]) => sequence));
  return [...sequences].flatMap((sequence) =>
    Array.from(
      { length: each },
      (_, i) => (rows ? ROWS[sequence]![1] : sequence) * each + i,
    )
  );
}

export function* ofConv1d(): Generator<Launch> {
  for (const batch of BATCHES) {
    for (const width of [2, 4]) {
      for (const channels of [1, 3, 65]) {
        const rows = channels === 3;
        const options = { name, width, channels, sequences: 2, tokens, rows };
        const each = channels * (width - 1);
        yield {
          kernel: () => conv1d(options),
          grid: conv1dGrid(options),
          reads: {
            ...ofTokens(batch),
            x: waves(batch.length * channels),
            weight: waves(channels * width),
            ...rows ? { states: ROWS.flat() } : {},
            state: waves(4 * each),
          },
          stores: {
            y: batch.length * channels,
            state: updated(batch, each, rows),
          },
        };
      }
    }
  }
}

const RECURRENCES: {
  readonly rule: readonly ("delta" | "add" | "seen" | "erase")[];
  readonly stateful: readonly boolean[];
  readonly reverse: readonly boolean[];
  readonly decayOf: readonly ("head" | "key" | "value")[];
  readonly heads: readonly (readonly [heads: number, kvHeads: number])[];
  readonly dims: readonly (readonly [dim: number, valueDim: number])[];
  readonly sequences: readonly number[];
} = {
  rule: ["delta", "add", "seen", "erase"],
  stateful: [true, false],
  reverse: [false, true],
  decayOf: ["head", "key", "value"],
  heads: [[1, 1], [4, 2]],
  dims: [[1, 1], [8, 3], [33, 2], [36, 33], [4, 64]],
  // Two sequences form one block; 200 form several.
  sequences: [2, 200],
};

const NAMES = {
  query: "query",
  keys: "keys",
  values: "values",
  decay: "decay",
  rate: "rate",
};

export function* ofLinearRecurrence(): Generator<Launch> {
  for (const [n, batch] of BATCHES.entries()) {
    for (
      const { heads: [heads, kvHeads], dims: [dim, valueDim], ...o } of product(
        RECURRENCES,
      )
    ) {
      // Large sizes only with one batch. Scans are stateless; only scans run in reverse.
      if ((dim > 8 || o.sequences > 2) && n !== 4) continue;
      if (valueDim === 64 && (n !== 4 || heads === 1)) continue;
      const scans = o.rule === "seen" || o.rule === "erase";
      if (o.stateful && (scans || o.reverse || o.decayOf === "value")) continue;
      if (!o.stateful && (o.sequences > 2 || o.rule === "delta")) continue;
      const of = { query: kvHeads, key: kvHeads, value: heads };
      const options = {
        ...o,
        name,
        names: NAMES,
        tokens,
        heads,
        of,
        dim,
        valueDim,
        rows: o.stateful && o.sequences === 2 && valueDim === 3,
        // Applies to 64 values; other counts do not divide evenly.
        columns: 2,
      };
      const { rows } = options;
      const each = heads * dim * valueDim;
      const { length } = batch;
      const state = o.stateful;
      yield {
        kernel: () => linearRecurrence(options),
        grid: recurrenceGrid(options),
        reads: {
          ...ofTokens(batch),
          query: waves(length * kvHeads * dim),
          keys: waves(length * kvHeads * dim),
          values: waves(length * heads * valueDim),
          decay: waves(
            length * heads * { head: 1, key: dim, value: valueDim }[o.decayOf],
          ),
          rate: waves(length * heads),
          ...rows ? { states: ROWS.flat() } : {},
          ...state ? { state: waves(2 * o.sequences * each) } : {},
        },
        stores: {
          y: length * heads * valueDim,
          ...state ? { state: updated(batch, each, rows) } : {},
        },
      };
    }
  }
}

export function* ofShift(): Generator<Launch> {
  for (const batch of BATCHES) {
    for (const by of [-2, -1, 1, 3]) {
      for (const width of [1, 3, 65]) {
        const { length } = batch;
        yield {
          kernel: () => shift({ name, tokens, width, by }),
          grid: elementwiseGrid(length * width),
          reads: { ...ofTokens(batch), x: waves(length * width) },
          stores: { y: length * width },
        };
      }
    }
  }
}
