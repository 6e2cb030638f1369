/** Kernels of capacity besides slots, one invocation per token: masks of choices, and weights after dropping. */

import type { RoutingRule } from "../../graph/graph.ts";
import type { Expr, Kernel } from "../kernel.ts";
import { bindings, elementwise, wgsl } from "../kernel.ts";
import { divisorOf } from "./router.ts";

/** Parameters of all capacity kernels. The grids of those here are `elementwiseGrid(tokens)`. */
export interface CapacityOptions {
  readonly name: string;
  readonly experts: number;
  readonly rule: RoutingRule;
  readonly tokens: Expr;
}

/** Routing groups: contiguous ones of a length, or given by an i32 tensor that orders the tokens. */
export type GroupsBy = Expr | "tensor";

/** The choice of each token for each expert: `mark` is the choice plus 1, or 0; `slot` is initialized to -1. */
export function mark(o: CapacityOptions & { masked: boolean }): Kernel {
  const k = o.rule.topK;
  // From the last choice to the first: of a repeated expert, the first choice counts.
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

/** Weights after dropping: 0 for choices without a slot; the others are divided by their remaining sum. */
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

/** Masks of the experts chosen by each token, for losses and statistics of a router. */
export interface MarksOptions extends CapacityOptions {
  /** Number of counted choices. */
  readonly choices: number;
  /** Counting of dropped choices: not at all, for expert 0, or like other choices. */
  readonly dropped: "nothing" | "expert 0" | "others";
  readonly masked: boolean;
}

/** 1 if a token chose an expert, else 0; for given choices, their number. */
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
