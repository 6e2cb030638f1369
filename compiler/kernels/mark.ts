/** Marks of choices: which choice, if any, each token has of each expert. */

import { bindings, elementwise, type Kernel, wgsl } from "./kernel.ts";
import type { CapacityOptions } from "./capacity.ts";

/**
 * Which choice each token has of each expert. Bindings: `index` i32 [token, k], `mask` i32 [token] if masked; written:
 * `mark` u32 [expert, token], the choice plus 1, or 0; `slot` i32 [token, k], -1. Its grid is `elementwiseGrid(tokens)`.
 */
export function mark(o: CapacityOptions & { masked: boolean }): Kernel {
  const k = o.rule.topK;
  // From the last choice to the first: of an expert that is given twice, the first counts.
  const marked = wgsl`
    for (var n = 0u; n < ${k}; n++) {
      let j = ${k - 1} - n;
      mark[u32(index[i * ${k} + j]) * ${o.tokens} + i] = j + 1;
    }`;
  return elementwise({
    name: o.name,
    count: o.tokens,
    bindings: bindings(
      { index: "i32", mask: "i32" },
      { mark: "u32", slot: "i32" },
    ),
    body: wgsl`
      for (var e = 0u; e < ${o.experts}; e++) { mark[e * ${o.tokens} + i] = 0; }
      for (var j = 0u; j < ${k}; j++) { slot[i * ${k} + j] = -1; }
      ${o.masked ? wgsl`if (mask[i] != 0) { ${marked} }` : marked}`,
  });
}
