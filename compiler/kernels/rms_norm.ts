/** RMS norms of rows (Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019): a workgroup for each row. */

import { type Expr, expr, type Kernel, local, wgsl } from "./kernel.ts";
import {
  eachElement,
  ELEMENT,
  ROW,
  rowKernel,
  type RowsOptions,
  rowSum,
} from "./rows.ts";

const [K, SCALE] = [local("k", "u32"), local("scale", "f32")];

/** x * (1 / sqrt(mean(x^2) + epsilon)) of every row. */
export function rmsNorm(o: RowsOptions & { readonly epsilon: number }): Kernel {
  const length = o.actual ? wgsl`f32(${o.actual})` : o.length;
  const squares = rowSum(
    o,
    wgsl`
    let value = ${o.load(ROW, K)};
    block = fma(value, value, block);`,
  );
  const scaled = (i: Expr) => expr`${o.load(ROW, i)} * ${SCALE}`;
  return rowKernel(
    o,
    wgsl`
    ${squares}
    let scale = 1.0 / sqrt(total / ${length} + ${o.epsilon});
    ${eachElement(o, o.epilogue(ROW, ELEMENT, scaled))}`,
  );
}
