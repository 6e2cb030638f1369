/** Permutes token rows into send order, and combines returned rows into tokens. */

import type { Binding, Expr, Kernel, Stmt } from "../kernel.ts";
import {
  elementwise,
  INDEX,
  kernelOf,
  local,
  reads,
  wgsl,
  writes,
} from "../kernel.ts";
import { DROPPED } from "./assign.ts";
import type { ResultOptions } from "../reduce.ts";
import { encodedElement, type WireRows } from "../wire.ts";

/** Rows of tokens and their choices. */
interface RowsOfTokens {
  readonly name: string;
  /** Elements of one token. */
  readonly row: number;
  readonly k: number;
  readonly tokens: Expr;
}

/**
 * A permute. Bindings: `x` f32 [token, row] (unless `value` computes it), `sendRow` u32 [token, k], `send` f32 [token *
 * k, row], written. Its grid is `elementwiseGrid(tokens * k * row)`.
 */
export interface PermuteOptions extends RowsOfTokens {
  /** Type of the elements. Default: f32. */
  readonly type?: Binding["type"];
  /** Element i of [token, row], sent for a choice of [token, k]. Default: the binding `x`. */
  value?(i: Expr, choice: Expr): Expr;
  /** Additional bindings for `value`. */
  readonly bindings?: readonly Binding[];
}

const [SOURCE, CHOICE] = [local("source", "u32"), local("choice", "u32")];

/** send[sendRow[t, j]] = x[t] */
export function permute(o: PermuteOptions): Kernel {
  const { row, k, type = "f32" } = o;
  const value = o.value?.(SOURCE, CHOICE) ?? wgsl`x[source]`;
  return elementwise({
    name: o.name,
    count: wgsl`${o.tokens} * ${k * row}`,
    bindings: [
      ...o.value ? [] : [reads("x", type)],
      reads("sendRow", "u32"),
      ...o.bindings ?? [],
      writes("send", type),
    ],
    body: wgsl`
      let choice = i / ${row};
      let element = i % ${row};
      let to = sendRow[choice];
      if (to != ${DROPPED}) {
        let source = choice / ${k} * ${row} + element;
        send[to * ${row} + element] = ${value};
      }`,
  });
}

/** Lanes of a permute of one token: those of matmuls and routers of many experts, which may share its launch. */
const LANES = 256;

/** A permute of one token: its row is sent for each choice, so it does not wait for their assignment. */
export interface PermuteOneOptions
  extends Pick<PermuteOptions, "name" | "row" | "type"> {
  /** Rows to store: at least as many as are sent. */
  readonly rows: number;
}

/** Workgroups of `permuteOne` along y. */
export function permuteOneGroups(
  { row }: Pick<PermuteOneOptions, "row">,
): number {
  return Math.ceil(row / LANES);
}

/** send[r] = x[0]. Its grid is 1 and `permuteOneGroups`. */
export function permuteOne(o: PermuteOneOptions): Kernel {
  const { row, rows, type = "f32" } = o;
  return kernelOf({
    name: o.name,
    workgroupSize: LANES,
    bindings: [reads("x", type), writes("send", type)],
    body: wgsl`
      let element = group.y * ${LANES} + lane;
      if (element < ${row}) {
        let value = x[element];
        for (var r = 0u; r < ${rows}; r++) { send[r * ${row} + element] = value; }
      }`,
  });
}

/**
 * A combine. Bindings: `returned` f32 [token * k, row] in send order, `sendRow` u32 [token, k], and others for
 * `epilogue`. Its grid is `elementwiseGrid(tokens * row)`.
 */
export interface CombineOptions extends RowsOfTokens {
  readonly bindings: readonly Binding[];
  /** Whether results are multiplied by their weights, `weight` f32 [token, k]. */
  readonly weighed: boolean;
  /** Format of `returned`, u32. Default: f32. */
  readonly wire?: WireRows;
  /** `sendRow` is [token, 2 * k] of `listRows`: rows, then the bits of their weights. */
  readonly listed?: boolean;
  /** Consumes the result at element i of [token, row]. */
  epilogue(i: Expr, value: Expr): readonly Stmt[];
}

/** y[t] = sum over j, in order, of weight[t, j] * returned[sendRow[t, j]]; dropped choices are skipped. */
export function combine(o: CombineOptions): Kernel {
  const { row, k, listed = false } = o;
  const weight = listed
    ? wgsl`bitcast<f32>(sendRow[choice + ${k}])`
    : wgsl`weight[choice]`;
  const result = o.wire
    ? encodedElement("returned", o.wire, {
      row: wgsl`(from * ${row / o.wire.length} + element / ${o.wire.length})`,
      element: wgsl`(element % ${o.wire.length})`,
    })
    : wgsl`returned[from * ${row} + element]`;
  const added = o.weighed
    ? wgsl`fma(${weight}, result, sum)`
    : wgsl`sum + result`;
  return elementwise({
    name: o.name,
    count: wgsl`${o.tokens} * ${row}`,
    bindings: o.bindings,
    body: wgsl`
      let choices = i / ${row} * ${listed ? 2 * k : k};
      let element = i % ${row};
      var sum = 0.0;
      for (var j = 0u; j < ${k}; j++) {
        let choice = choices + j;
        let from = sendRow[choice];
        if (from != ${DROPPED}) {
          let result = ${result};
          sum = ${added};
        }
      }
      ${o.epilogue(INDEX, local("sum", "f32"))}`,
  });
}

/**
 * The returned row of each choice, 0 for dropped ones; the derivative of weights uses it. Bindings: `returned` f32
 * [row, width] in send order, `sendRow` u32 [token, k], and others.
 */
export function combineTranspose(
  { width, ...o }: ResultOptions & { readonly width: number },
): Kernel {
  return elementwise({
    ...o,
    body: wgsl`
      let from = sendRow[i / ${width}];
      var value = 0.0;
      if (from != ${DROPPED}) { value = returned[from * ${width} + i % ${width}]; }
      ${o.epilogue(INDEX, local("value", "f32"))}`,
  });
}
