/** The cotangents of keys and values: of each, the sum over the queries of this run that see it. */

import { type KernelText, wgsl } from "../../spec/kernel/text.ts";
import type { Kernel } from "../../spec/kernel/tree.ts";
import {
  type BackwardOptions,
  gradBindings,
  score,
  slope,
  weight,
} from "./attention_backward.ts";
import { elementwise } from "./elementwise.ts";

/**
 * The cotangent of the keys or values that the tokens of this run wrote, `y` f32 in the layout of the cache. Entries that
 * no token wrote are left as they are. Its grid is `elementwiseGrid(tokens * kvHeads)`.
 */
export function keyGrad(o: BackwardOptions, of: "keys" | "values"): Kernel {
  const length = of === "keys" ? o.dim : o.valueDim;
  const elements = Array.from({ length }, (_, d) => d);
  const group = o.heads / o.kvHeads;
  /** What a query adds to element d: slope * query for a key, weight * dy for a value, both where a key is a value too. */
  const added = (d: number) => {
    const ofKey = wgsl`fma(slope, q[q_at + ${d * o.heads}], sum${d})`;
    const ofValue = (sum: KernelText) =>
      wgsl`fma(weight, dy[dy_at + ${d * o.heads}], ${sum})`;
    if (of === "values") return ofValue(wgsl`sum${d}`);
    return o.shared && d < o.valueDim ? ofValue(ofKey) : ofKey;
  };
  return elementwise({
    name: o.name,
    count: wgsl`${o.tokens} * ${o.kvHeads}`,
    bindings: gradBindings(o),
    body: wgsl`
      let written = i / ${o.kvHeads};
      let kv = i % ${o.kvHeads};
      let entry = u32(place[written]);
      let end = ${seenUntil(o)};
      ${elements.map((d) => wgsl`var sum${d} = 0.0;`)}
      for (var token = 0u; token < ${o.tokens}; token++) {
        let seen_from = u32(place[token]);
        if (entry <= seen_from && seen_from < end) {
          for (var h = 0u; h < ${group}; h++) {
            let head = kv * ${group} + h;
            ${score(o)}
            ${weight(o)}
            ${of === "keys" && slope(o)}
            ${elements.map((d) => wgsl`sum${d} = ${added(d)};`)}
          }
        }
      }
      ${
      elements.map((d) =>
        wgsl`
        y[(entry * ${o.kvHeads} + kv) * ${length} + ${d}] = sum${d};`
      )
    }`,
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
