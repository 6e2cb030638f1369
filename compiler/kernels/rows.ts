/**
 * Kernels with one workgroup per row: RMS norms (Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019) and
 * softmaxes.
 */

import type { Size } from "../../spec/size.ts";
import type { Binding, Expr, Grid, Kernel, KernelText } from "./kernel.ts";
import type { Statements, Stmt } from "./kernel.ts";
import { expr, foldGrid, GROUP_XY, kernelOf, local, wgsl } from "./kernel.ts";
import { let_ } from "../../spec/kernel/build.ts";
import { ADJACENT, type LoadAdjacent } from "./pieces/adjacent.ts";
import { SUM_BLOCK } from "./pieces/blocked_sum.ts";
import { range } from "../../spec/range.ts";

/** A kernel of one workgroup per row. Its grid is `rowsGrid(rows)`. */
export interface RowsOptions {
  readonly name: string;
  readonly rows: Expr;
  /** The length of a row, or its bound. */
  readonly length: number;
  /** The dynamic length of a row, if it is dynamic. */
  readonly actual?: Expr | undefined;
  readonly bindings: readonly Binding[];
  /** For a wide device: more lanes, each with all loads of a block in flight. Default: false. */
  readonly wide?: boolean | undefined;
  /** The f32 element `i` of a row. */
  load(row: Expr, i: Expr): Expr;
  /** Consumes the result at `i`; `value` returns the result at any index of the row. */
  epilogue(row: Expr, i: Expr, value: (i: Expr) => Expr): readonly Stmt[];
  /** Elements of the result beyond the row, and the code for them. Default: none. */
  readonly others?: {
    readonly end: number;
    store(row: Expr, i: Expr): readonly Stmt[];
  };
}

/** The grid of `rmsNorm`, `softmax` and `topK`. */
export function rowsGrid(rows: Size): Grid {
  return [...foldGrid(rows), 1];
}

/** Variables of the text: the row, and an element of it. */
const [ROW, ELEMENT] = [local("row", "u32"), local("i", "u32")];
const [TOP, TOTAL, SCALE] = ["top", "total", "scale"].map((name) =>
  local(name, "f32")
) as [Expr, Expr, Expr];

/** Lanes for the blocks of a row and for its elements. */
export function lanesOf(length: number): number {
  return length <= 8 ? 8 : length <= 256 ? 32 : 64;
}

/** Length of rows from which a wide device has the most lanes of every WebGPU device. */
const LONG = 1024, MAX_LANES = 256;

/** Block sums that a lane of a wide device loads at once. */
const SUMS_AT_ONCE = 16;

/** Lanes of a row. */
function lanesOfRow({ length, wide, lanes }: RowSum): number {
  return lanes ?? (wide && length >= LONG ? MAX_LANES : lanesOf(length));
}

/** A sum over the row of a workgroup. */
export interface RowSum
  extends Pick<RowsOptions, "length" | "actual" | "wide" | "load"> {
  /** Lanes of the workgroup. Default: those of a kernel for such rows. */
  readonly lanes?: number;
  /**
   * One lane adds the block sums, because the instructions of the others delay other workgroups. Default: every lane.
   */
  readonly isPart?: boolean;
  /** Loads adjacent elements of a row for a wide device. */
  readonly adjacent?: LoadAdjacent | undefined;
  /** Loads that are in flight while block sums are added. Default: none. */
  readonly meanwhile?: KernelText | undefined;
  /** Start of the names of variables. Default: none. */
  readonly prefix?: string;
}

/** x * (1 / sqrt(mean(x^2) + epsilon)) of every row. */
export function rmsNorm(o: RowsOptions & { readonly epsilon: number }): Kernel {
  const scaled = (i: Expr) => expr`${o.load(ROW, i)} * ${SCALE}`;
  return rowKernel(
    o,
    wgsl`
    ${rmsScale(o)}
    ${eachElement(o, o.epilogue(ROW, ELEMENT, scaled))}
    ${
      o.others && wgsl`
    for (var i = ${o.length}u + lane; i < ${o.others.end}; i += ${
        lanesOfRow(o)
      }) { ${o.others.store(ROW, ELEMENT)} }`
    }`,
  );
}

/** Declares `scale` of the row, 1 / sqrt(mean(x^2) + epsilon), in every lane of a workgroup. */
export function rmsScale(
  o: RowSum & { readonly epsilon: number },
): KernelText {
  const { prefix: p = "" } = o;
  const length = o.actual ? wgsl`f32(${o.actual})` : o.length;
  const square = (value: string) =>
    wgsl`${p}block = fma(${value}, ${value}, ${p}block);`;
  return wgsl`
    ${rowSum(o, square)}
    let ${p}scale = 1.0 / sqrt(${p}total / ${length} + ${o.epsilon});`;
}

/** exp(x - max) / sum of exp(x - max), of every row. */
export function softmax(o: RowsOptions): Kernel {
  const lanes = lanesOfRow(o);
  const larger = wgsl`lane_top = max(lane_top, ${o.load(ROW, ELEMENT)});`;
  const power = (value: string) => wgsl`block += exp(${value} - top);`;
  const share = (i: Expr) => expr`exp(${o.load(ROW, i)} - ${TOP}) / ${TOTAL}`;
  return rowKernel(
    o,
    wgsl`
    var<workgroup> tops: array<f32, ${lanes}>;
    var lane_top = ${-Infinity};
    ${eachElement(o, larger)}
    tops[lane] = lane_top;
    workgroupBarrier();
    var top = ${-Infinity};
    for (var l = 0u; l < ${lanes}; l++) { top = max(top, tops[l]); }
    ${rowSum(o, power)}
    ${eachElement(o, o.epilogue(ROW, ELEMENT, share))}`,
  );
}

/** Executes `body` for the `row` of each workgroup. */
function rowKernel(o: RowsOptions, body: KernelText): Kernel {
  return kernelOf({
    name: o.name,
    workgroupSize: lanesOfRow(o),
    bindings: o.bindings,
    body: wgsl`
      let row = ${GROUP_XY};
      if (row < ${o.rows}) {
        ${body}
      }`,
  });
}

/** The end of a row. */
function endOf({ length, actual }: RowSum): Expr | KernelText {
  return actual ?? wgsl`${length}u`;
}

/** Executes `body` for element `i` of the row; elements are distributed over the lanes. */
function eachElement(o: RowsOptions, body: Statements): KernelText {
  return wgsl`
    for (var i = lane; i < ${endOf(o)}; i += ${lanesOfRow(o)}) { ${body} }`;
}

/**
 * Computes `total`, the sum of the contract over the row, in every lane: lanes sum complete blocks, then each lane adds
 * the block sums in order. `add` adds a value to `block`.
 */
function rowSum(
  o: RowSum,
  add: (value: string) => KernelText,
): KernelText {
  const { prefix: p = "" } = o;
  const count = Math.ceil(o.length / SUM_BLOCK);
  const blocks = o.actual
    ? wgsl`(${o.actual} + ${SUM_BLOCK - 1}) / ${SUM_BLOCK}`
    : wgsl`${count}u`;
  const next = wgsl`${p}b * ${SUM_BLOCK} + ${SUM_BLOCK}`;
  // With blocks of equal length, all lanes have the same iterations.
  const even = !o.actual && o.length % SUM_BLOCK === 0;
  const at = (name: string) => local(p + name, "u32");
  const term = wgsl`
    let ${p}value = ${o.load(ROW, at("k"))};
    ${add(`${p}value`)}`;
  const values = range(SUM_BLOCK).map((n) => `${p}value_${n}`);
  const atOnce = o.adjacent ? ADJACENT : 1;
  const loaded = (n: number): readonly Stmt[] => {
    const index = expr`${at("first")} + ${n * atOnce}`;
    const names = values.slice(n * atOnce, (n + 1) * atOnce);
    return o.adjacent?.(ROW, index, names) ??
      [let_(names[0]!, o.load(ROW, index))];
  };
  const sum = even && o.wide
    ? wgsl`
      let ${p}first = ${p}b * ${SUM_BLOCK};
      ${range(SUM_BLOCK / atOnce).flatMap(loaded)}
      ${values.map((value) => add(value))}`
    : even
    ? wgsl`
      let ${p}first = ${p}b * ${SUM_BLOCK};
      for (var turn = 0u; turn < ${SUM_BLOCK}; turn++) {
        let ${p}k = ${p}first + turn;
        ${term}
      }`
    : wgsl`
      for (var ${p}k = ${p}b * ${SUM_BLOCK}; ${p}k < min(${next}, ${
      endOf(o)
    }); ${p}k++) {
        ${term}
      }`;
  // Loads of sums do not wait for each other.
  const unrolled = o.wide && !o.actual ? count - count % SUMS_AT_ONCE : 0;
  const added = wgsl`
    var ${p}total = 0.0;
    ${
    unrolled > 0 && wgsl`
    for (var ${p}b = 0u; ${p}b < ${unrolled}; ${p}b += ${SUMS_AT_ONCE}) {
      @unroll (n < ${SUMS_AT_ONCE}) { let ${p}of_block[n] = ${p}blocks[${p}b + n]; }
      @unroll (n < ${SUMS_AT_ONCE}) { ${p}total += ${p}of_block[n]; }
    }`
  }
    ${
    (o.actual || unrolled < count) && wgsl`
    for (var ${p}b = ${unrolled}u; ${p}b < ${blocks}; ${p}b++) { ${p}total += ${p}blocks[${p}b]; }`
  }`;
  return wgsl`
    var<workgroup> ${p}blocks: array<f32, ${count}>;
    for (var ${p}b = lane; ${p}b < ${blocks}; ${p}b += ${lanesOfRow(o)}) {
      var ${p}block = 0.0;
      ${sum}
      ${p}blocks[${p}b] = ${p}block;
    }
    ${o.meanwhile}
    workgroupBarrier();
    ${
    o.isPart
      ? wgsl`
    var<workgroup> ${p}sum: array<f32, 1>;
    if (lane == 0) { ${added} ${p}sum[0] = ${p}total; }
    workgroupBarrier();
    let ${p}total = ${p}sum[0];`
      : added
  }`;
}
