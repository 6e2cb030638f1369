/**
 * Attention residuals (Kimi Team, "Attention Residuals", arXiv 2603.15031): layers form blocks. The residual stream
 * restarts at each block. A part of a layer reads, instead of the stream, a weighted sum of the starts of all blocks and
 * of the stream: by a softmax over one score each, the product of the normalized rows with a learned vector.
 */

import {
  add,
  concat,
  dot,
  mul,
  rename,
  slice,
  softmax,
  split,
  sum,
  type Tensor,
} from "../compiler/mod.ts";
import type { DecoderScope, Layer, Rows } from "./decoder.ts";
import { plainNorm } from "./norms.ts";

/** Axes: the starts of blocks, whose name has their number; those and one more; and one. */
export type ResidualAxis = "starts" | "more" | "one";

/** Returns the sizes of the axes for up to a number of blocks. */
export function residualAxes(
  blocks: number,
): { readonly [axis in ResidualAxis]: number } {
  const sizes: { [axis: string]: number } = { one: 1 };
  for (let n = 1; n <= blocks + 1; n++) sizes[startsOf(n)] = n;
  return sizes as { readonly [axis in ResidualAxis]: number };
}

function startsOf(n: number): "starts" {
  return `starts${n}` as "starts";
}

function moreThan(n: number): "more" {
  return `starts${n + 1}` as "more";
}

type Stack = Tensor<"token starts embed", "f32">;

/** The starts of blocks: rows, and normalized rows. */
export interface Starts {
  readonly count: number;
  readonly rows: Stack;
  readonly normed: Stack;
}

/** Adds rows to the starts of blocks. */
export function addStart(
  starts: Starts | undefined,
  rows: Rows,
  epsilon: number,
): Starts {
  const count = starts?.count ?? 0;
  const joined = (before: Stack | undefined, rows: Rows) =>
    before
      ? concat(before, single(rows), startsOf(count), moreThan(count))
      : rename(single(rows), "one", moreThan(count));
  return {
    count: count + 1,
    rows: joined(starts?.rows, rows) as Tensor as Stack,
    normed: joined(
      starts?.normed,
      plainNorm(rows, "embed", epsilon),
    ) as Tensor as Stack,
  };
}

/** Rows with an axis of one. */
function single(rows: Rows): Tensor<"token one embed", "f32"> {
  return split(rename(rows, "embed", "inner"), "inner", "one embed");
}

/** Selects the rows that need logits. */
export function pickStarts(
  m: DecoderScope,
  { count, rows, normed }: Starts,
  layer: Layer,
): Starts {
  return { count, rows: layer.pick(m, rows), normed: layer.pick(m, normed) };
}

/** The weighted sum of the starts of blocks and of rows. Its parameters begin with `name`. */
export function mixStarts(
  m: DecoderScope<ResidualAxis>,
  { count, rows: stack, normed }: Starts,
  rows: Rows,
  { name, epsilon }: { readonly name: string; readonly epsilon: number },
): Rows {
  const projection = sum(m.param(`${name}_proj.weight`, "one embed"), "one");
  const vector = mul(m.param(`${name}_norm.weight`, "embed"), projection);
  const starts = startsOf(count), more = moreThan(count);
  const own = plainNorm(single(rows), "embed", epsilon);
  const scores = concat(
    dot(normed, vector, "embed"),
    dot(own, vector, "embed"),
    starts,
    more,
  );
  const weights = softmax(scores, more);
  return add(
    dot(slice(weights, more, 0, starts), stack, starts),
    mul(rows, sum(slice(weights, more, count, "one"), "one")),
  );
}
