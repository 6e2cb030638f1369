/** Marks as numbers: how often each token chose each expert, which losses and statistics of a router sum. */

import { bindings, elementwise, type Kernel, wgsl } from "./kernel.ts";
import type { CapacityOptions } from "./capacity.ts";

/**
 * How often each token chose each expert. Bindings: `index` i32 [token, k]; `slot` i32 [token, k] if `dropped` matters;
 * `mask` i32 [token] if masked; written: `marks` f32 [token, expert]. Its grid is `elementwiseGrid(tokens)`.
 */
export interface MarksOptions extends CapacityOptions {
  /** How many of the choices count. */
  readonly choices: number;
  /** What dropped choices count as: nothing, expert 0, or as the others do. */
  readonly dropped: "nothing" | "expert 0" | "others";
  readonly masked: boolean;
}

/** 1 where a token chose an expert, else 0; for choices that are given, how often. */
export function marks(o: MarksOptions): Kernel {
  const k = o.rule.topK;
  const kept = wgsl`slot[i * ${k} + j] >= 0`;
  const chosen = wgsl`u32(index[i * ${k} + j])`;
  const hits = [
    wgsl`${
      o.dropped === "expert 0" ? wgsl`select(0u, ${chosen}, ${kept})` : chosen
    } == e`,
    ...o.dropped === "nothing" ? [kept] : [],
    ...o.masked ? [wgsl`mask[i] != 0`] : [],
  ].reduce((all, test) => wgsl`${all} && ${test}`);
  return elementwise({
    name: o.name,
    count: o.tokens,
    bindings: bindings(
      { index: "i32", slot: "i32", mask: "i32" },
      { marks: "f32" },
    ),
    body: wgsl`
      for (var e = 0u; e < ${o.experts}; e++) {
        var hit = 0.0;
        for (var j = 0u; j < ${o.choices}; j++) {
          if (${hits}) { hit += 1.0; }
        }
        marks[i * ${o.experts} + e] = hit;
      }`,
  });
}
