/** What a capacity has besides its slots, an invocation for each token: marks of choices, and weights after dropping. */

import type { RoutingRule } from "../graph/graph.ts";
import type { Expr, Kernel } from "./kernel.ts";
import { bindings, elementwise, wgsl } from "./kernel.ts";
import { divisorOf } from "./router.ts";

/** Parameters of all kernels of a capacity. The grids of those here are `elementwiseGrid(tokens)`. */
export interface CapacityOptions {
  readonly name: string;
  readonly experts: number;
  readonly rule: RoutingRule;
  readonly tokens: Expr;
}

/** Where routing groups are: contiguous ones of a length, or as an i32 says, when tokens are ordered by it. */
export type GroupsBy = Expr | "tensor";

/** Which choice each token has of each expert: `mark` is the choice plus 1, or 0; `slot` becomes -1. */
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
      { index: "i32 [token, k]", mask: "i32 [token]" },
      { mark: "u32 [expert, token]", slot: "i32 [token, k]" },
    ),
    body: wgsl`
      for (var e = 0u; e < ${o.experts}; e++) { mark[e * ${o.tokens} + i] = 0; }
      for (var j = 0u; j < ${k}; j++) { slot[i * ${k} + j] = -1; }
      ${o.masked ? wgsl`if (mask[i] != 0) { ${marked} }` : marked}`,
  });
}

/** Weights after dropping: those of choices without a slot are 0, and the others are divided by what is left of their sum. */
export function keep({ name, rule, tokens }: CapacityOptions): Kernel {
  const k = rule.topK;
  const left = wgsl`
    let left = select(weight[choices + j], 0.0, slot[choices + j] < 0);`;
  const share = rule.scale === undefined
    ? wgsl`left / divisor`
    : wgsl`left / divisor * ${rule.scale}`;
  const unchanged = wgsl`
    for (var j = 0u; j < ${k}; j++) { ${left} kept[choices + j] = left; }`;
  const divided = wgsl`
    var total = 0.0;
    for (var j = 0u; j < ${k}; j++) { ${left} total += left; }
    let divisor = ${divisorOf(rule, "total")};
    for (var j = 0u; j < ${k}; j++) {
      ${left}
      kept[choices + j] = select(${share}, 0.0, left == 0.0);
    }`;
  return elementwise({
    name,
    count: tokens,
    bindings: bindings(
      { slot: "i32 [token, k]", weight: "f32 [token, k]" },
      { kept: "f32 [token, k]" },
    ),
    body: wgsl`
      let choices = i * ${k};
      ${rule.normalize === "kept" ? divided : unchanged}`,
  });
}

/** How often each token chose each expert, which losses and statistics of a router sum. */
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
  const expert = o.dropped === "expert 0"
    ? wgsl`select(0u, ${chosen}, ${kept})`
    : chosen;
  const hits = [
    wgsl`${expert} == e`,
    ...o.dropped === "nothing" ? [kept] : [],
    ...o.masked ? [wgsl`mask[i] != 0`] : [],
  ].reduce((all, test) => wgsl`${all} && ${test}`);
  return elementwise({
    name: o.name,
    count: o.tokens,
    bindings: bindings({
      index: "i32 [token, k]",
      slot: "i32 [token, k]",
      mask: "i32 [token]",
    }, { marks: "f32 [token, expert]" }),
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
