/** The logarithm of the sum of a query's exponentials, from which its derivative computes weights again. */

import { bindings, elementwise, type Kernel, wgsl } from "./kernel.ts";
import { type BackwardOptions, eachKey, score } from "./attention_backward.ts";
import { LOWEST } from "./pieces/numbers.ts";

/**
 * y[token, head] = log(sum of exp(score)), with the score of a sink if there is one, as a running softmax: `top` is the
 * maximum so far, `sum` the sum of exponentials less it. Its grid is `elementwiseGrid(tokens * heads)`.
 */
export function attentionSum(o: BackwardOptions): Kernel {
  const { heads, sinks } = o;
  const own = {
    position: wgsl`u32(position[token])`,
    sequence: wgsl`u32(sequence[token])`,
  };
  const add = wgsl`
    ${score(o)}
    let new_top = max(top, score);
    sum = fma(sum, exp(top - new_top), exp(score - new_top));
    top = new_top;`;
  return elementwise({
    name: o.name,
    count: wgsl`${o.tokens} * ${heads}`,
    bindings: bindings({
      ...{ q: "f32", keys: "f32", ...sinks ? { sinks: "f32" } : {} },
      ...{ sequence: "i32", position: "i32" },
    }, { y: "f32" }),
    body: wgsl`
      let query = i;
      var top = ${sinks ? wgsl`sinks[query % ${heads}]` : wgsl`f32(${LOWEST})`};
      var sum = ${sinks ? wgsl`1.0` : wgsl`0.0`};
      ${eachKey(o, own, add)}
      y[i] = top + log(sum);`,
  });
}
