/** Layers with every kind of router. */

import {
  balancingLoss,
  combine,
  dispatch,
  dot,
  map,
  mean,
  type Model,
  model,
  mul,
  route,
  type RoutingPreset,
  upTo,
} from "../../compiler/mod.ts";

/** Additional operands of a router. */
export type Extra = "mask" | "noise" | "bias" | "group" | "random" | "choices";

/** Layer of experts with outputs `y` and `loss`. Other options are those of `route`. */
export function routedLayer(
  preset: RoutingPreset,
  topK: number,
  { extra, tokens = 90, ...options }: {
    readonly extra: readonly Extra[];
    /** Maximum tokens. Default: 90. */
    readonly tokens?: number;
    readonly [option: string]: unknown;
  },
): Model {
  const axes = { embed: 12, ffn: 10, expert: 8, choice: topK };
  return model({ token: upTo(tokens), ...axes }, (m) => {
    const x = m.input("x", "token embed");
    const logits = dot(x, m.param("router", "expert embed"), "embed");
    const operands = {
      mask: () => m.input("mask", "token", { dtype: "i32" }),
      noise: () => m.input("noise", "token expert"),
      bias: () => m.param("bias", "expert"),
      group: () => m.input("group", "token", { dtype: "i32" }),
      random: () => m.input("random", "token expert"),
      choices: () => m.input("choices", "token choice", { dtype: "i32" }),
    };
    const routing = route(logits, {
      over: "expert",
      topK,
      preset,
      ...options,
      ...Object.fromEntries(extra.map((name) => [name, operands[name]()])),
    } as never) as never;
    const sent = dispatch(x as never, routing);
    const hidden = map(
      (g) => g / (1 + Math.exp(-g)),
      dot(sent as never, m.param("up.{expert}", "expert ffn embed"), "embed"),
    );
    const down = m.param("down.{expert}", "expert embed ffn");
    const y = combine(dot(hidden as never, down, "ffn") as never, routing);
    const loss = mean(mean(map((v) => v * v, y as never), "embed"), "token");
    const balance = balancingLoss(logits, routing, { over: "expert" } as never);
    return { y, loss: mul(loss as never, balance as never) } as never;
  });
}

/** Combinations of additional operands. */
export const EXTRAS: readonly (readonly Extra[])[] = [
  ...[[], ["mask"], ["noise"], ["bias"], ["group"]],
  ...[["group", "mask", "noise"], ["random"], ["choices"]],
] as Extra[][];

export const ROUTERS: readonly { readonly [option: string]: unknown }[] = [
  {},
  { capacity: { factor: 0.75 } },
  { capacity: { slots: 5, drop: "score", order: "token" } },
  { capacity: { slots: 5, drop: "position", order: "choice" } },
  { capacity: { factor: 1.5, prioritised: true } },
  { capacity: { slots: "largest" } },
  { expertGroups: { count: 4, keep: 2 } },
  { expertGroups: { count: 4, keep: 2, best: 1 }, scale: 2.5 },
  { normalize: "kept", minSum: 1e-3 },
  { normalize: "chosen", epsilon: 1e-6, scale: 1.5 },
];
