/** The k largest of each row: short rows by one invocation each, long ones by a workgroup each. */

import type { Expr, Kernel } from "./kernel.ts";
import { bindings, elementwise, wgsl } from "./kernel.ts";
import { eachLargest } from "./pieces/selection.ts";

/**
 * The k largest of each row. Bindings: `x` f32 [row, count], `values` f32 and `indices` i32 [row, k], written.
 * Its grid is `elementwiseGrid(rows)`.
 */
export interface TopKOptions {
  readonly name: string;
  readonly rows: Expr;
  readonly count: number;
  readonly k: number;
}

/** Values and indices of the k largest, by value descending, index ascending. */
export function topK({ name, rows, count, k }: TopKOptions): Kernel {
  const from = { k, count, value: wgsl`x[row + e]` };
  return elementwise({
    name,
    count: rows,
    bindings: bindings({ x: "f32" }, { values: "f32", indices: "i32" }),
    body: wgsl`
      let row = i * ${count};
      ${
      eachLargest(
        "best",
        from,
        wgsl`
        let at = i * ${k} + j;
        values[at] = best_value;
        indices[at] = i32(best);`,
      )
    }`,
  });
}
