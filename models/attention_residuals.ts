/**
 * Attention residuals (Kimi Team, "Attention Residuals", arXiv 2603.15031): layers form blocks. The residual stream
 * restarts at each block. A part of a layer reads, instead of the stream, a weighted sum of the starts of all blocks
 * and of the stream: by a softmax over one score each, the product of the normalized rows with a learned vector.
 */

import {
  concat,
  dot,
  merge,
  rename,
  rmsNorm,
  softmax,
  split,
  type Tensor,
} from "../compiler/mod.ts";
import type { DecoderScope, Layer, Rows } from "./decoder.ts";

/** Axes: the starts of blocks, whose name has their number; those and one more; one; and the elements of a row. */
export type ResidualAxis = "starts" | "more" | "one" | "inner";

/** Returns the sizes of the axes for up to a number of blocks. */
export function residualAxes(
  blocks: number,
  embed: number,
): { readonly [axis in ResidualAxis]: number } {
  const sizes: { [axis: string]: number } = { one: 1, inner: embed };
  for (let n = 1; n <= blocks + 1; n++) sizes[startsOf(n)] = n;
  return sizes as { readonly [axis in ResidualAxis]: number };
}

function startsOf(n: number): "starts" {
  return `starts${n}` as "starts";
}

function moreThan(n: number): "more" {
  return `starts${n + 1}` as "more";
}

/** The starts of blocks. */
export interface Starts {
  readonly count: number;
  readonly rows: Tensor<"token starts embed", "f32">;
}

/** Adds rows to the starts of blocks. */
export function addStart(starts: Starts | undefined, rows: Rows): Starts {
  const count = starts?.count ?? 0;
  const one = split(rename(rows, "embed", "inner"), "inner", "one embed");
  const all = starts
    ? concat(starts.rows, one, startsOf(count), moreThan(count))
    : rename(one, "one", moreThan(count));
  return { count: count + 1, rows: all as Tensor as Starts["rows"] };
}

/** Selects the rows that need logits. */
export function pickStarts(
  m: DecoderScope,
  { count, rows }: Starts,
  layer: Layer,
): Starts {
  return { count, rows: layer.pick(m, rows) };
}

/** The weighted sum of the starts of blocks and of rows. Its parameters begin with `name`. */
export function mixStarts(
  m: DecoderScope<ResidualAxis>,
  starts: Starts,
  rows: Rows,
  { name, epsilon }: { readonly name: string; readonly epsilon: number },
): Rows {
  const all = addStart(starts, rows);
  const axis = startsOf(all.count);
  const gain = m.param(`${name}_norm.weight`, "embed");
  const query = merge(
    m.param(`${name}_proj.weight`, "one inner"),
    "one inner",
    "embed",
  );
  const keys = rmsNorm(all.rows, gain, "embed", { epsilon });
  return dot(softmax(dot(keys, query, "embed"), axis), all.rows, axis);
}
