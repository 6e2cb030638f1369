/** Sums, means and maxima over an axis; RMS norms and softmaxes of rows. */

import {
  add,
  call,
  convert,
  div,
  f32,
  fma,
  for_,
  id,
  if_,
  let_,
  load,
  local,
  lt,
  max,
  min,
  mul,
  set,
  shared,
  sharedStore,
  sub,
  u32,
  var_,
} from "../../spec/kernel/build.ts";
import type { Binding, Expr, Kernel, Stmt } from "../../spec/kernel/tree.ts";
import type { Size } from "../../spec/size.ts";
import { elementwise } from "./elementwise.ts";
import { foldGrid, type Grid, groupXY, kernelOf, lengthOf } from "./kernel.ts";
import { blockedSum, blockLoop, SUM_BLOCK, type SumStep } from "./sum.ts";

/** A reduction over one axis, one invocation for each result. Its grid is `elementwiseGrid(count)`. */
export interface ReduceOptions {
  readonly name: string;
  readonly kind: "sum" | "max" | "mean";
  /** How many results. */
  readonly count: Expr;
  /** How many values in each. */
  readonly length: number | Expr;
  readonly bindings: readonly Binding[];
  prepare?(i: Expr): readonly Stmt[];
  load(i: Expr, k: Expr): Expr;
  epilogue(i: Expr, value: Expr): readonly Stmt[];
}

/** Reduce load(i, 0), load(i, 1), … for every i. The maximum of nothing is minus infinity, its mean 0. */
export function reduce(o: ReduceOptions): Kernel {
  const value = local("value", "f32");
  const k = local("k", "u32");
  const length = convert("f32", lengthOf(o.length));
  const divisor = lengthOf(o.length).op === "const"
    ? length
    : max(length, f32(1));
  const sum = blockedSum({
    length: o.length,
    totals: ["value"],
    step: (k, [block]) => ({
      values: [add(block!, o.load(local("i", "u32"), k))],
    }),
  });
  return elementwise({
    ...o,
    body: (i) => [
      ...o.prepare?.(i) ?? [],
      ...o.kind === "max"
        ? [
          var_("value", f32(-Infinity)),
          for_("k", u32(0), lengthOf(o.length), [
            set("value", max(value, o.load(i, k))),
          ]),
        ]
        : sum,
      ...o.epilogue(
        i,
        o.kind === "mean" ? div(value, divisor) : value,
      ),
    ],
  });
}

/** A kernel of one workgroup for each row. Its grid is `rowsGrid(rows)`. */
export interface RowsOptions {
  readonly name: string;
  readonly rows: Expr;
  /** The length of a row, or its bound. */
  readonly length: number;
  /** The length in a run, where that is known only then. */
  readonly actual?: Expr | undefined;
  readonly bindings: readonly Binding[];
  load(row: Expr, i: Expr): Expr;
  epilogue(row: Expr, i: Expr, value: Expr): readonly Stmt[];
}

/** The grid of `rmsNorm` and `softmax`. */
export function rowsGrid(rows: Size): Grid {
  return [...foldGrid(rows), 1];
}

const ROW = local("row", "u32");

/** Enough lanes for the blocks of a row, and for its elements. */
function lanesOf(length: number): number {
  return length <= 8 ? 8 : length <= 256 ? 32 : 64;
}

function rowKernel(
  o: RowsOptions,
  arrays: readonly [string, number][],
  body: Stmt[],
): Kernel {
  return kernelOf({
    name: o.name,
    workgroupSize: lanesOf(o.length),
    bindings: o.bindings,
    shared: arrays.map(([name, length]) => ({ name, type: "f32", length })),
    body: [let_("row", groupXY()), if_(lt(ROW, o.rows), body)],
  });
}

/** Every lane gets `total`, the sum over the row: lanes sum whole blocks, then each adds the block sums in order. */
function rowSum(
  o: RowsOptions,
  step: (k: Expr, block: Expr) => SumStep,
): Stmt[] {
  const blocks = o.actual
    ? div(add(o.actual, u32(SUM_BLOCK - 1)), u32(SUM_BLOCK))
    : u32(Math.ceil(o.length / SUM_BLOCK));
  const b = local("b", "u32");
  const start = mul(b, u32(SUM_BLOCK));
  const next = add(start, u32(SUM_BLOCK));
  const whole = !o.actual && o.length % SUM_BLOCK === 0;
  const end = whole ? next : min(next, o.actual ?? u32(o.length));
  return [
    for_("b", id("local"), blocks, [
      var_("block", f32(0)),
      ...blockLoop({ step: (k, [block]) => step(k, block!) }, start, end, [
        "block",
      ]),
      sharedStore("blocks", b, local("block", "f32")),
    ], u32(lanesOf(o.length))),
    { op: "barrier" },
    var_("total", f32(0)),
    for_("b", u32(0), blocks, [
      set("total", add(local("total", "f32"), shared("blocks", b))),
    ]),
  ];
}

function eachElement(o: RowsOptions, body: (i: Expr) => readonly Stmt[]): Stmt {
  return for_(
    "i",
    id("local"),
    o.actual ?? u32(o.length),
    body(local("i", "u32")),
    u32(lanesOf(o.length)),
  );
}

/** x * (1 / sqrt(mean(x^2) + epsilon)) of every row. */
export function rmsNorm(o: RowsOptions & { readonly epsilon: number }): Kernel {
  const blocks = Math.ceil(o.length / SUM_BLOCK);
  const x = local("x", "f32");
  const length = o.actual ? convert("f32", o.actual) : f32(o.length);
  const mean = div(local("total", "f32"), length);
  return rowKernel(o, [["blocks", blocks]], [
    ...rowSum(o, (k, block) => ({
      lets: [let_("x", o.load(ROW, k))],
      values: [fma(x, x, block)],
    })),
    let_("scale", div(f32(1), call("sqrt", add(mean, f32(o.epsilon))))),
    eachElement(
      o,
      (i) => o.epilogue(ROW, i, mul(o.load(ROW, i), local("scale", "f32"))),
    ),
  ]);
}

/** exp(x - max) / sum of exp(x - max), of every row. */
export function softmax(o: RowsOptions): Kernel {
  const blocks = Math.ceil(o.length / SUM_BLOCK);
  const lanes = lanesOf(o.length);
  const top = local("top", "f32");
  const lane = local("lane", "u32");
  const exp = (i: Expr) => call("exp", sub(o.load(ROW, i), top));
  return rowKernel(o, [["tops", lanes], ["blocks", blocks]], [
    var_("lane_top", f32(-Infinity)),
    eachElement(o, (i) => [
      set("lane_top", max(local("lane_top", "f32"), o.load(ROW, i))),
    ]),
    sharedStore("tops", id("local"), local("lane_top", "f32")),
    { op: "barrier" },
    var_("top", f32(-Infinity)),
    for_("lane", u32(0), u32(lanes), [
      set("top", max(top, shared("tops", lane))),
    ]),
    ...rowSum(o, (k, block) => ({ values: [add(block, exp(k))] })),
    eachElement(
      o,
      (i) => o.epilogue(ROW, i, div(exp(i), local("total", "f32"))),
    ),
  ]);
}

/** Loads from a row-major matrix: element row * length + i. */
export function rowMajor(
  binding: string,
  length: number,
): (row: Expr, i: Expr) => Expr {
  return (row, i) => load(binding, add(mul(row, u32(length)), i));
}
