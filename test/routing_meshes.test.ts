/** Routers with given, forced or prioritized choices on meshes, with experts. */
// needs: cpu, gpu

import t from "tap";
import {
  combine,
  dispatch,
  dot,
  embedding,
  type Model,
  model,
  route,
  type RouteOptions,
  type RoutingPreset,
  type Scope,
  type Tensor,
  upTo,
} from "../compiler/mod.ts";
import {
  type Case,
  closeDevices,
  holds,
  runCase,
  waves,
} from "./helpers/run_model.ts";

const [BOUND, TOKENS, EXPERTS] = [90, 77, 5];

type Net = Scope<"token" | "embed" | "ffn" | "expert" | "choice" | "vocab">;
type Options = Partial<
  RouteOptions<"token expert", "expert", RoutingPreset, "slot", "choice">
>;

/** A router with a layer of experts. */
function layer(topK: number, options: (m: Net) => Options): Model {
  const axes = {
    token: upTo(BOUND),
    embed: 6,
    ffn: 4,
    expert: EXPERTS,
    choice: topK,
    vocab: 9,
  };
  return model(axes, (m) => {
    const x = m.input("x", "token embed");
    const logits = dot(x, m.param("router", "expert embed"), "embed");
    const routing = route(logits, {
      over: "expert",
      topK,
      preset: "olmoe",
      ...options(m),
    });
    const up = m.param("up.{expert}", "expert ffn embed");
    const down = m.param("down.{expert}", "expert embed ffn");
    const inner = dot(dispatch(x, routing), up, "embed");
    const { index, weight, chosen, first, kept } = routing;
    return {
      y: combine(dot(inner, down, "ffn"), routing),
      index,
      weight,
      chosen,
      first,
      kept,
    };
  });
}

/** Pseudo-random integers below a bound. */
function integers(count: number, below: number): number[] {
  return waves(count, 5).map((x) => Math.floor((x + 1) / 2 * below) % below);
}

const CASES: { readonly [name: string]: Case } = {
  "a hash of token ids": {
    model: layer(2, (m) => ({
      preset: "hash",
      choices: embedding(
        m.input("table", "vocab choice", { dtype: "i32" }),
        m.input("ids", "token", { dtype: "i32" }),
        "vocab",
      ) as Tensor<"token choice", "i32">,
    })),
    calls: [{ table: integers(18, EXPERTS), ids: integers(TOKENS, 9) }],
  },
  "given choices and weights, with capacity": {
    model: layer(3, (m) => ({
      choices: m.input("choices", "token choice", { dtype: "i32" }),
      weights: m.input("weights", "token choice"),
      capacity: { slots: 30, drop: "score" },
    })),
    calls: [{ choices: integers(TOKENS * 3, EXPERTS) }],
  },
  "balanced choices": { model: layer(2, () => ({ preset: "forced" })) },
  "tokens by priority": {
    model: layer(2, () => ({
      preset: "tutel.prioritised",
      capacity: { factor: 0.75 },
    })),
  },
  "expert choice": {
    model: layer(EXPERTS, () => ({ preset: "expertChoice" })),
  },
  "sequences as groups of tokens": {
    model: layer(2, (m) => ({
      preset: "gshard.top2",
      group: m.input("sequence", "token", { dtype: "i32" }),
      noise: m.input("noise", "token expert"),
      mask: m.input("mask", "token", { dtype: "i32" }),
    })),
    calls: [{
      sequence: integers(TOKENS, 3),
      mask: integers(TOKENS, 6),
    }],
  },
};

for (const [name, of] of Object.entries(CASES)) {
  holds(name, { ...of, lengths: { token: TOKENS } }, [
    {},
    { mesh: { ep: 4 } },
    { mesh: { dp: 3, ep: 2 } },
  ]);
}

t.test("given choices of unknown experts are rejected", async (t) => {
  const base = CASES["given choices and weights, with capacity"]!;
  const choices = integers(TOKENS * 3, EXPERTS).with(4, EXPERTS);
  const of: Case = { ...base, calls: [{ choices }] };
  for (const mesh of [{}, { ep: 2 }]) {
    await t.rejects(runCase(of, "cpu", { mesh }), {
      name: "DataError",
      message: /'choices'.* 5/,
    }, JSON.stringify(mesh));
  }
});

t.teardown(closeDevices);
