/** The cotangents of keys and values: of each, the sum over the queries of this run that see it. */

import { elementwise, type Kernel, type KernelText, wgsl } from "./kernel.ts";
import {
  type BackwardOptions,
  gradBindings,
  score,
  slope,
  weight,
} from "./attention_backward.ts";

/**
 * The cotangent of the keys or values that the tokens of this run wrote, `y` f32 in the layout of the cache. Entries that
 * no token wrote are left as they are. Its grid is `elementwiseGrid(tokens * kvHeads)`.
 */
export function keyGrad(o: BackwardOptions, of: "keys" | "values"): Kernel {
  const length = of === "keys" ? o.dim : o.valueDim;
  const group = o.heads / o.kvHeads;
  // What a query adds to element e: slope * query of a key, weight * dy of a value, both where a key is a value too.
  const ofValues =
    wgsl`sum[e] = fma(weight, dy[dy_at + e * ${o.heads}], sum[e]);`;
  const ofKeys = wgsl`sum[e] = fma(slope, q[q_at + e * ${o.heads}], sum[e]);`;
  const add = of === "values" ? ofValues : ofKeys;
  return elementwise({
    name: o.name,
    count: wgsl`${o.tokens} * ${o.kvHeads}`,
    bindings: gradBindings(o),
    body: wgsl`
      let written = i / ${o.kvHeads};
      let kv = i % ${o.kvHeads};
      let entry = u32(place[written]);
      let end = ${seenUntil(o)};
      @unroll (e < ${length}) { var sum[e] = 0.0; }
      for (var token = 0u; token < ${o.tokens}; token++) {
        let seen_from = u32(place[token]);
        if (entry <= seen_from && seen_from < end) {
          for (var h = 0u; h < ${group}; h++) {
            let head = kv * ${group} + h;
            ${score(o)}
            ${weight(o)}
            ${of === "keys" && slope(o)}
            @unroll (e < ${length}) { ${add} }
            ${
      of === "keys" && o.shared &&
      wgsl`@unroll (e < ${o.valueDim}) { ${ofValues} }`
    }
          }
        }
      }
      @unroll (e < ${length}) { y[(entry * ${o.kvHeads} + kv) * ${length} + e] = sum[e]; }`,
  });
}

/** The place after the last one, sequence * context + position, from which `entry` is seen. */
function seenUntil({ context, window, chunk }: BackwardOptions): KernelText {
  return [
    ...window === undefined ? [] : [wgsl`entry + ${window}`],
    ...chunk === undefined
      ? []
      : [wgsl`entry + (${chunk} - entry % ${context} % ${chunk})`],
  ].reduce(
    (a, b) => wgsl`min(${a}, ${b})`,
    wgsl`(entry / ${context} + 1) * ${context}`,
  );
}
