/** The cotangent of queries: of each, the sum over the keys that it sees of slope * key. */

import { wgsl } from "../../spec/kernel/text.ts";
import type { Kernel } from "../../spec/kernel/tree.ts";
import {
  type BackwardOptions,
  eachKey,
  gradBindings,
  score,
  slope,
  weight,
} from "./attention_backward.ts";
import { elementwise } from "./elementwise.ts";

/** The cotangent of queries, `y` f32 [token, head, dim]. Its grid is `elementwiseGrid(tokens * heads)`. */
export function queryGrad(o: BackwardOptions): Kernel {
  const elements = Array.from({ length: o.dim }, (_, d) => d);
  const own = {
    position: wgsl`u32(place[token]) % ${o.context}`,
    sequence: wgsl`u32(place[token]) / ${o.context}`,
  };
  const add = wgsl`
    ${score(o)}
    ${weight(o)}
    ${slope(o)}
    ${
    elements.map((d) =>
      wgsl`sum${d} = fma(slope, keys[key_at + ${d * o.kvHeads}], sum${d});`
    )
  }`;
  return elementwise({
    name: o.name,
    count: wgsl`${o.tokens} * ${o.heads}`,
    bindings: gradBindings(o),
    body: wgsl`
      let query = i;
      ${elements.map((d) => wgsl`var sum${d} = 0.0;`)}
      ${eachKey(o, own, add)}
      ${elements.map((d) => wgsl`y[i * ${o.dim} + ${d}] = sum${d};`)}`,
  });
}
