// fairscale's MOELayer with Top2Gate. Each group of tokens is routed separately; each expert takes 2 · tokens /
// experts tokens of a group and drops the rest. Run it on random data on four ranks: switchyard run
// examples/fairscale.ts
// --random --mesh ep=4
import {
  add,
  combine,
  dispatch,
  dot,
  map,
  type Model,
  model,
  route,
} from "switchyard-moe";

/** Sizes of the layer. */
export interface FairscaleOptions {
  /** Routing groups. fairscale has one per rank. */
  readonly groups: number;
  /** Tokens per group. */
  readonly tokens: number;
  readonly experts: number;
  /** Choose the second experts with noise from an input `gumbel`. */
  readonly noise?: boolean;
}

export const layer = fairscale({ groups: 4, tokens: 16, experts: 8 });

/** Builds the layer for given sizes. */
export function fairscale(options: FairscaleOptions): Model {
  const { groups, tokens, experts, noise = false } = options;
  return model(
    { group: groups, token: tokens, embed: 8, ffn: 12, expert: experts },
    (m) => {
      const x = m.input("input", "group token embed");
      const logits = dot(x, m.param("gate.weight", "expert embed"), "embed");
      const routing = route(logits, {
        over: "expert",
        topK: 2,
        preset: "fairscale.top2",
        group: "group",
        ...(noise ? { noise: m.input("gumbel", "group token expert") } : {}),
      });
      const sent = dispatch(x, routing);
      const inner = dot(
        sent,
        m.param("expert{expert}.fc1.weight", "expert ffn embed"),
        "embed",
      );
      const hidden = map(
        (h, b) => Math.max(h + b, 0),
        inner,
        m.param("expert{expert}.fc1.bias", "expert ffn"),
      );
      const outer = dot(
        hidden,
        m.param("expert{expert}.fc2.weight", "expert embed ffn"),
        "ffn",
      );
      const done = add(
        outer,
        m.param("expert{expert}.fc2.bias", "expert embed"),
      );
      return {
        output: combine(done, routing),
        index: routing.index,
        slot: routing.slot,
        weight: routing.weight,
      };
    },
  );
}
