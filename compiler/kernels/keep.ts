/** Weights after dropping: those of choices without a slot are 0, and the others are divided by what is left of their sum. */

import { bindings, elementwise, type Kernel, wgsl } from "./kernel.ts";
import type { CapacityOptions } from "./capacity.ts";
import { divisorOf } from "./router.ts";

/**
 * The weights after dropping. Bindings: `slot` i32 and `weight` f32 [token, k]; written: `kept` f32 [token, k]. Its
 * grid is `elementwiseGrid(tokens)`.
 */
export function keep({ name, rule, tokens }: CapacityOptions): Kernel {
  const k = rule.topK;
  const left = wgsl`
    let left = select(weight[choices + j], 0.0, slot[choices + j] < 0);`;
  const share = wgsl`left / divisor`;
  return elementwise({
    name,
    count: tokens,
    bindings: bindings({ slot: "i32", weight: "f32" }, { kept: "f32" }),
    body: wgsl`
      let choices = i * ${k};
      ${
      rule.normalize === "kept"
        ? wgsl`
        var total = 0.0;
        for (var j = 0u; j < ${k}; j++) { ${left} total += left; }
        let divisor = ${divisorOf(rule, "total")};
        for (var j = 0u; j < ${k}; j++) {
          ${left}
          kept[choices + j] = select(${
          rule.scale === undefined ? share : wgsl`${share} * ${rule.scale}`
        }, 0.0, left == 0.0);
        }`
        : wgsl`
        for (var j = 0u; j < ${k}; j++) { ${left} kept[choices + j] = left; }`
    }`,
  });
}
