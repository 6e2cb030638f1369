/** The cotangent of queries: of each, the sum over the keys that it sees of slope * key. */

import { elementwise, type Kernel, wgsl } from "./kernel.ts";
import {
  type BackwardOptions,
  eachKey,
  gradBindings,
  score,
  slope,
  weight,
} from "./attention_backward.ts";

/** The cotangent of queries, `y` f32 [token, head, dim]. Its grid is `elementwiseGrid(tokens * heads)`. */
export function queryGrad(o: BackwardOptions): Kernel {
  const own = {
    position: wgsl`u32(place[token]) % ${o.context}`,
    sequence: wgsl`u32(place[token]) / ${o.context}`,
  };
  const add = wgsl`
    ${score(o)}
    ${weight(o)}
    ${slope(o)}
    @unroll (e < ${o.dim}) { sum[e] = fma(slope, keys[key_at + e * ${o.kvHeads}], sum[e]); }`;
  return elementwise({
    name: o.name,
    count: wgsl`${o.tokens} * ${o.heads}`,
    bindings: gradBindings(o),
    body: wgsl`
      let query = i;
      @unroll (e < ${o.dim}) { var sum[e] = 0.0; }
      ${eachKey(o, own, add)}
      @unroll (e < ${o.dim}) { y[i * ${o.dim} + e] = sum[e]; }`,
  });
}
