/** Where the grouped rows of each local expert start. */

import { bindings, elementwise, type Kernel, wgsl } from "./kernel.ts";

/**
 * Where the rows of each local expert start: how many rows are of experts before it. Bindings: `expertOf` u32 [row], in
 * grouped order; `rowCount` u32 [1]; written: `starts` u32 [experts + 1]. Its grid is `elementwiseGrid(experts + 1)`.
 */
export function rowStarts(name: string, experts: number): Kernel {
  return elementwise({
    name,
    count: experts + 1,
    bindings: bindings({ expertOf: "u32", rowCount: "u32" }, { starts: "u32" }),
    body: wgsl`
      var before = 0u;
      for (var g = 0u; g < rowCount[0]; g++) {
        let own = expertOf[g];
        if (own < i) { before++; }
      }
      starts[i] = before;`,
  });
}
