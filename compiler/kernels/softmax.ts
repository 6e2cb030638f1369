/** Softmaxes of rows: a workgroup for each row. */

import { type Expr, expr, type Kernel, local, wgsl } from "./kernel.ts";
import {
  eachElement,
  ELEMENT,
  lanesOf,
  ROW,
  rowKernel,
  type RowsOptions,
  rowSum,
} from "./rows.ts";

const [K, TOP, TOTAL] = [
  local("k", "u32"),
  local("top", "f32"),
  local("total", "f32"),
];

/** exp(x - max) / sum of exp(x - max), of every row. */
export function softmax(o: RowsOptions): Kernel {
  const lanes = lanesOf(o.length);
  const largest = eachElement(
    o,
    wgsl`
    lane_top = max(lane_top, ${o.load(ROW, ELEMENT)});`,
  );
  const powers = rowSum(o, wgsl`block += exp(${o.load(ROW, K)} - top);`);
  const share = (i: Expr) => expr`exp(${o.load(ROW, i)} - ${TOP}) / ${TOTAL}`;
  return rowKernel(
    o,
    wgsl`
    var<workgroup> tops: array<f32, ${lanes}>;
    var lane_top = ${-Infinity};
    ${largest}
    tops[lane] = lane_top;
    workgroupBarrier();
    var top = ${-Infinity};
    for (var l = 0u; l < ${lanes}; l++) { top = max(top, tops[l]); }
    ${powers}
    ${eachElement(o, o.epilogue(ROW, ELEMENT, share))}`,
  );
}
