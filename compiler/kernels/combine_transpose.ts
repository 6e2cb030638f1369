/** The transpose of a combine's weights: the row that returned for each choice, which the derivative of its weight needs. */

import type { Expr, Kernel } from "./kernel.ts";
import { elementwise, INDEX, local, wgsl } from "./kernel.ts";
import { DROPPED } from "./assign.ts";
import type { ResultOptions } from "./reduce.ts";

/** Returned rows. Bindings are f32 `returned` [row, width] in send order, u32 `sendRow` [token, k], and others. */
export interface CombineTransposeOptions extends Omit<ResultOptions, "count"> {
  readonly width: number;
  /** Tokens times k. */
  readonly choices: Expr;
}

/** A row for each choice; 0 for those that were dropped. Its grid is `elementwiseGrid(tokens * k * width)`. */
export function combineTranspose(o: CombineTransposeOptions): Kernel {
  const { width } = o;
  return elementwise({
    name: o.name,
    count: wgsl`${o.choices} * ${width}`,
    bindings: o.bindings,
    body: wgsl`
      let from = sendRow[i / ${width}];
      var value = 0.0;
      if (from != ${DROPPED}) { value = returned[from * ${width} + i % ${width}]; }
      ${o.epilogue(INDEX, local("value", "f32"))}`,
  });
}
