/** Routers and attention on meshes, against the reference evaluator. */
// needs: cpu, gpu

import t from "tap";
import {
  add,
  attention,
  cachedAttention,
  cast,
  combine,
  type CompileOptions,
  dispatch,
  dot,
  latentAttention,
  max,
  model,
  mul,
  rename,
  route,
  split,
  sum,
  topK,
  upTo,
} from "../compiler/mod.ts";
import { devicesInTurn, skipUnasked } from "./helpers/needs.ts";
import {
  type Case,
  closeDevices,
  digest,
  holds,
  MESHES,
  runCase,
  skip,
  waves,
} from "./helpers/run_model.ts";

t.teardown(closeDevices);

holds("routers of every size, two layers, a shared expert", {
  calls: [{ x: waves(28) }, { x: waves(4, 3) }, { x: [] }, { x: waves(36, 9) }],
  model: model({
    token: upTo(9),
    embed: 4,
    ffn: 3,
    expert: 5,
    other: 3,
    lone: 1,
  }, (m) => {
    const x = m.input("x", "token embed");
    const logits = dot(x, m.param("router", "expert embed"), "embed");
    const all = route(logits, {
      over: "expert",
      topK: 5,
      preset: "olmoe",
      choice: "all",
    });
    const one = route(logits, {
      over: "expert",
      topK: 1,
      preset: "mixtral",
      choice: "one",
    });
    const ups = dot(
      dispatch(x, all),
      m.param("up.{expert}", "expert ffn embed"),
      "embed",
    );
    const y = combine(
      dot(ups, m.param("down.{expert}", "expert embed ffn"), "ffn"),
      all,
    );
    const z = combine(mul(dispatch(x, one), m.param("scale", "expert")), one);
    const shared = dot(x, m.param("shared", "embed ffn"), "embed");
    const after = add(
      add(y, z),
      dot(shared, m.param("sharedDown", "embed ffn"), "ffn"),
    );
    const next = route(dot(after, m.param("router2", "other embed"), "embed"), {
      over: "other",
      topK: 2,
      preset: "mixtral",
    });
    const last = combine(
      dot(dispatch(after, next), m.param("w2", "other ffn embed"), "embed"),
      next,
    );
    const lone = route(dot(x, m.param("router3", "lone embed"), "embed"), {
      over: "lone",
      topK: 1,
      preset: "mixtral",
      choice: "single",
    });
    return {
      y,
      z,
      after,
      last,
      index: next.index,
      all: all.weight,
      lone: combine(dispatch(x, lone), lone),
    };
  }),
});

holds("logits with experts as the first axis", {
  model: model({ token: upTo(6), embed: 4, expert: 5 }, (m) => {
    const x = m.input("x", "token embed");
    const logits = dot(m.param("router", "expert embed"), x, "embed");
    const routing = route(logits, {
      over: "expert",
      topK: 2,
      preset: "mixtral",
    });
    return { y: combine(dispatch(x, routing), routing), index: routing.index };
  }),
});

for (const noisy of [false, true]) {
  holds(
    `fairscale by one group, a leading axis and a tensor${
      noisy ? ", with noise" : ""
    }`,
    {
      calls: [{ who: [0, 1, 1, 0, 2, 0, 1] }, { who: [1, 1, 1, 1] }],
      model: model(
        { group: 4, member: 5, token: upTo(8), embed: 4, expert: 4 },
        (m) => {
          const x = m.input("x", "group member embed");
          const router = m.param("router", "expert embed");
          const noise = (name: string) =>
            noisy ? { noise: m.input(name, "group member expert") } : {};
          const led = route(dot(x, router, "embed"), {
            over: "expert",
            topK: 2,
            preset: "fairscale.top2",
            group: "group",
            ...noise("noise"),
          });
          const packed = m.input("packed", "token embed");
          const by = route(dot(packed, router, "embed"), {
            over: "expert",
            topK: 2,
            preset: "fairscale.top2",
            group: m.input("who", "token", { dtype: "i32" }),
          });
          const w = m.param("w", "expert embed");
          return {
            led: combine(mul(dispatch(x, led), w), led),
            slots: led.slot,
            by: combine(mul(dispatch(packed, by), w), by),
            weight: by.weight,
            slot: by.slot,
          };
        },
      ),
    },
  );
}

holds("fairscale with all tokens in one group", {
  calls: [{ x: waves(24) }, { x: waves(4) }],
  model: model({ token: upTo(9), embed: 4, expert: 4 }, (m) => {
    const x = m.input("x", "token embed");
    const routing = route(dot(x, m.param("router", "expert embed"), "embed"), {
      over: "expert",
      topK: 2,
      preset: "fairscale.top2",
    });
    return { y: combine(dispatch(x, routing), routing), slot: routing.slot };
  }),
});

/** Attention; windowed attention with its own cache; windowed attention over the cache of the first. */
function attending(
  tokens: number | ReturnType<typeof upTo>,
  dtype: "f32" | "f16",
  context = 40,
) {
  return model({
    token: tokens,
    embed: 8,
    head: 4,
    kvHead: 2,
    dim: 4,
    all: 16,
    kv: 8,
    sequence: 3,
    context,
  }, (m) => {
    const x = m.input("x", "token embed");
    const sequence = m.input("sequence", "token", { dtype: "i32" });
    const position = m.input("position", "token", { dtype: "i32" });
    const part = (name: string) =>
      cast(
        split(dot(x, m.param(name, "kv embed"), "embed"), "kv", "kvHead dim"),
        dtype,
      );
    const q = cast(
      split(dot(x, m.param("q", "all embed"), "embed"), "all", "head dim"),
      dtype,
    );
    const cache = (name: string) =>
      m.state(name, "sequence context kvHead dim", { dtype });
    const full = attention(q, {
      key: part("k"),
      value: part("v"),
      keys: cache("keys"),
      values: cache("values"),
      sequence,
      position,
    });
    const near = attention(q, {
      key: part("k"),
      value: part("v2"),
      keys: cache("nearKeys"),
      values: cache("nearValues"),
      sequence,
      position,
      window: 3,
      scale: 0.7,
    });
    // A window over a cache that is also read without one.
    const shared = cachedAttention(q, {
      keys: full.keys,
      values: full.values,
      sequence,
      position,
      window: 33,
    });
    return {
      y: full.y,
      near: near.y,
      shared,
      sum: add(full.y, near.y),
      keys: full.keys,
      values: full.values,
      nearKeys: near.keys,
      nearValues: near.values,
    };
  });
}
for (const dtype of ["f32", "f16"] as const) {
  holds(`attention over several calls, ${dtype}`, {
    model: attending(upTo(40), dtype),
    calls: [
      {
        x: waves(8 * 40),
        sequence: new Array(40).fill(0).map((_, i) => i < 35 ? 1 : 0),
        position: Array.from({ length: 40 }, (_, i) => i < 35 ? i : i - 35),
      },
      { x: waves(16, 2), sequence: [0, 1], position: [5, 35] },
      {
        x: waves(40, 4),
        sequence: [2, 2, 0, 2, 1],
        position: [0, 1, 6, 2, 36],
      },
      { x: waves(8, 7), sequence: [2], position: [3] },
      { x: [], sequence: [], position: [] },
    ],
  }, [
    {},
    ...dtype === "f32"
      ? [{ mesh: { dp: 2 }, place: { token: "dp" } }, {
        mesh: { ep: 3 },
        place: { token: "ep" },
      }]
      : [],
  ]);
}
for (const dtype of ["f32", "f16"] as const) {
  // Steps of up to two tokens are split over the eight key blocks of the context.
  const of: Case = {
    model: attending(upTo(40), dtype, 256),
    calls: [
      {
        x: waves(8 * 40),
        sequence: new Array(40).fill(1),
        position: Array.from({ length: 40 }, (_, i) => i),
      },
      { x: waves(16, 2), sequence: [0, 1], position: [0, 40] },
      { x: waves(24, 4), sequence: [1, 1, 0], position: [41, 42, 1] },
      { x: waves(8, 7), sequence: [1], position: [43] },
      { x: [], sequence: [], position: [] },
    ],
  };
  const overKeys: CompileOptions = { tuning: { splitKeys: 2 } };
  // Eight key blocks on each of two ranks.
  holds(`attention to keys of two ranks, ${dtype}`, {
    ...of,
    model: attending(upTo(40), dtype, 512),
    calls: [
      ...of.calls!,
      // Earlier keys are gathered; a window gathers fewer.
      ...[44, 84].map((first) => ({
        x: waves(8 * 40, first),
        sequence: new Array(40).fill(1),
        position: Array.from({ length: 40 }, (_, i) => first + i),
      })),
      { x: waves(8 * 3), sequence: [1, 1, 0], position: [44, 255, 256] },
      { x: waves(8), sequence: [1], position: [300] },
    ],
  }, [
    { ...overKeys, mesh: { cp: 2 }, place: { context: "cp" } },
    { mesh: { cp: 2 }, place: { context: "cp" } },
  ]);
  holds(`attention split over keys, ${dtype}`, of, [
    overKeys,
    ...dtype === "f32"
      ? [{ ...overKeys, mesh: { dp: 2 }, place: { token: "dp" } }]
      : [],
  ]);
  const headMajor = { headMajor: true };
  holds(`attention over head-major caches, ${dtype}`, of, [
    { tuning: headMajor },
    { tuning: { ...headMajor, splitKeys: 2 } },
    // Ranks that share positions gather keys, so their caches are not head-major.
    { tuning: headMajor, mesh: { cp: 2 }, place: { context: "cp" } },
  ]);
  for (const kind of devicesInTurn(`attention ${dtype}`)) {
    t.test(`attention split over keys has the same bits, ${dtype}, ${kind}`, {
      skip: kind === "gpu" ? skip : skipUnasked("cpu"),
    }, async (t) => {
      t.equal(
        digest(await runCase(of, kind, overKeys)),
        digest(await runCase(of, kind)),
      );
    });
  }
}
holds("attention with a static token axis", {
  model: attending(3, "f32"),
  calls: [{ sequence: [0, 0, 1], position: [0, 1, 0] }, {
    sequence: [0, 1, 1],
    position: [2, 1, 2],
  }],
}, [{}, { mesh: { dp: 2 }, place: { token: "dp" } }]);

holds("a static token axis, with experts sharded unevenly", {
  model: model({ token: 7, embed: 3, expert: 5 }, (m) => {
    const x = m.input("x", "token embed");
    const routing = route(m.input("logits", "token expert"), {
      over: "expert",
      topK: 2,
      preset: "mixtral",
    });
    const best = topK(x, { over: "embed", k: 2, axis: "best" });
    return {
      y: combine(
        mul(dispatch(x, routing), m.param("w", "expert embed")),
        routing,
      ),
      best: best.values,
      bestAt: best.indices,
      sums: sum(x, "embed"),
      largest: max(rename(x, "embed", "other"), "other"),
    };
  }),
}, [...MESHES, {
  mesh: { ep: 4 },
  place: {
    token: "ep",
    expert: { over: "ep", table: [[], [4, 2, 0], [1], [3]] },
  },
}]);

holds("options of newer routers", {
  calls: [{ x: waves(28) }, { x: [] }, { x: waves(4, 3) }],
  model: model({ token: upTo(9), embed: 4, ffn: 5, expert: 6 }, (m) => {
    const x = m.input("x", "token embed");
    const logits = dot(x, m.param("router", "expert embed"), "embed");
    const bias = m.param("bias", "expert");
    const over = { over: "expert", topK: 3 } as const;
    const grouped = { count: 3, keep: 2 };
    const routings = {
      graniteMoe: route(logits, { ...over, preset: "graniteMoe" }),
      deepseekV2: route(logits, {
        ...over,
        preset: "deepseekV2",
        expertGroups: grouped,
        scale: 2.5,
      }),
      deepseekV3: route(logits, {
        ...over,
        preset: "deepseekV3",
        expertGroups: grouped,
        bias,
      }),
      llama4: route(logits, { ...over, preset: "llama4" }),
      biased: route(logits, {
        ...over,
        preset: "mixtral",
        bias: mul(bias, 0.1),
        weighs: "input",
      }),
    };
    const w = m.param("w", "expert ffn embed");
    return Object.fromEntries(
      Object.entries(routings).flatMap(([name, routing]) => [
        [name, combine(dot(dispatch(x, routing), w, "embed"), routing)],
        [`${name}Index`, routing.index],
        [`${name}Weight`, routing.weight],
      ]),
    );
  }),
});

holds("attention with sinks, blocks and latent keys", {
  model: model({
    token: upTo(40),
    head: 4,
    kvHead: 2,
    dim: 6,
    valueDim: 4,
    sequence: 2,
    context: 40,
  }, (m) => {
    const q = m.input("q", "token head dim");
    const sequence = m.input("sequence", "token", { dtype: "i32" });
    const position = m.input("position", "token", { dtype: "i32" });
    const pair = "token kvHead dim";
    const cache = "sequence context kvHead dim";
    const first = attention(q, {
      key: m.input("k", pair),
      value: m.input("v", pair),
      keys: m.state("keys", cache),
      values: m.state("values", cache),
      sequence,
      position,
      sinks: m.param("sinks", "head"),
    });
    const second = attention(first.y, {
      key: m.input("k2", pair),
      value: m.input("v2", pair),
      keys: m.state("keys2", cache),
      values: m.state("values2", cache),
      sequence,
      position,
      chunk: 8,
      sinks: mul(m.param("sinks2", "head"), 2),
    });
    const latent = latentAttention(q, {
      key: m.input("latent", "token dim"),
      keys: m.state("latents", "sequence context dim"),
      value: "valueDim",
      sequence,
      position,
    });
    return {
      y: first.y,
      z: second.y,
      l: latent.y,
      keys: first.keys,
      values: first.values,
      keys2: second.keys,
      values2: second.values,
      latents: latent.keys,
    };
  }),
  stored: "bf16",
  calls: [
    {
      sequence: Array.from({ length: 40 }, (_, i) => i < 35 ? 1 : 0),
      position: Array.from({ length: 40 }, (_, i) => i < 35 ? i : i - 35),
    },
    { sequence: [0, 1, 1], position: [5, 35, 36] },
    {
      sequence: [],
      position: [],
      q: [],
      k: [],
      v: [],
      k2: [],
      v2: [],
      latent: [],
    },
  ],
}, [{}, { mesh: { dp: 2 }, place: { token: "dp" } }]);
