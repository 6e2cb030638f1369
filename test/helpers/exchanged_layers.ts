/** Model that exchanges every kind of row of a dispatch and a combine. */

import {
  add,
  combine,
  dispatch,
  dot,
  map,
  model,
  mul,
  route,
  upTo,
} from "../../compiler/mod.ts";
import { type Case, waves } from "./run_model.ts";

/**
 * Layers of eight experts on the same rows: three experts per token, choices dropped beyond `slots` per expert,
 * weighted dispatch, unchanged returns, and two dispatches of one value. Calls use all tokens, 5, 1 and 0.
 */
export function exchangedLayers(
  { tokens, embed, slots }: {
    readonly tokens: number;
    readonly embed: number;
    readonly slots: number;
  },
): Case {
  const sizes = { token: upTo(tokens), embed, ffn: 12, expert: 8 };
  return {
    model: model(sizes, (m) => {
      const x = m.input("x", "token embed");
      const logits = dot(x, m.param("router", "expert embed"), "embed");
      const over = { over: "expert" } as const;
      const routing = route(logits, { ...over, topK: 3, preset: "mixtral" });
      const dropping = route(logits, {
        over: "expert",
        topK: 2,
        preset: "gshard.top2",
        choice: "two",
        capacity: { slots },
        slot: "place",
      });
      const weighed = route(logits, {
        over: "expert",
        topK: 2,
        preset: "llama4",
        choice: "two",
        slot: "input",
      });
      const up = m.param("experts.{expert}.up", "expert ffn embed");
      const down = m.param("experts.{expert}.down", "expert embed ffn");
      const hidden = map(
        (u) => Math.max(u, 0),
        dot(dispatch(x, routing), up, "embed"),
      );
      const first = combine(dot(hidden, down, "ffn"), routing);
      return {
        first,
        second: combine(mul(dispatch(first, routing), 2), routing),
        same: combine(dispatch(x, routing), routing),
        dropped: combine(mul(dispatch(x, dropping), 3), dropping),
        weighed: combine(add(dispatch(x, weighed), 1), weighed),
      };
    }),
    calls: [tokens, 5, 1, 0].map((n) => ({ x: waves(embed * n, n) })),
  };
}
