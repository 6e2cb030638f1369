/** Routers, attention and meshes, compiled and run, against the reference evaluator. */

import t from "tap";
import {
  add,
  attention,
  cast,
  combine,
  type CompileOptions,
  dispatch,
  dot,
  max,
  model,
  mul,
  rename,
  rmsNorm,
  route,
  softmax,
  split,
  sum,
  topK,
  upTo,
} from "../compiler/mod.ts";
import {
  type Case,
  closeDevices,
  digest,
  matches,
  runCase,
  skip,
} from "./helpers/run_model.ts";

t.teardown(closeDevices);

const MESHES: readonly CompileOptions[] = [
  {},
  { mesh: { ep: 2 } },
  { mesh: { ep: 3 } },
  { mesh: { dp: 2, ep: 2 } },
];

/** Run one case on both kinds of device, on meshes. */
function holds(
  name: string,
  of: Case,
  meshes: readonly CompileOptions[] = MESHES,
): void {
  t.test(name, async (t) => await matches(t, of, "cpu", meshes));
  t.test(`${name}, on a GPU`, { skip }, async (t) => {
    await matches(t, of, "gpu", meshes);
  });
}

/** Numbers that repeat nowhere. */
function waves(count: number, from = 0): number[] {
  return Array.from(
    { length: count },
    (_, i) => Math.sin((i + from) ** 2 + from),
  );
}

holds("routers of every size, two layers, experts beside them", {
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

holds("logits with the experts first", {
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

holds("fairscale with all tokens in one group, tokens on one rank", {
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
}, [{}]);

/** A layer of attention, and one without a cache of its own window. */
function attending(
  tokens: number | ReturnType<typeof upTo>,
  dtype: "f32" | "f16",
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
    context: 40,
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
    return {
      y: full.y,
      near: near.y,
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
holds("attention of a fixed number of tokens", {
  model: attending(3, "f32"),
  calls: [{ sequence: [0, 0, 1], position: [0, 1, 0] }, {
    sequence: [0, 1, 1],
    position: [2, 1, 2],
  }],
}, [{}, { mesh: { dp: 2 }, place: { token: "dp" } }]);

holds("tokens of a fixed number, experts in uneven shares", {
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
      most: max(rename(x, "embed", "other"), "other"),
    };
  }),
}, [...MESHES, {
  mesh: { ep: 4 },
  place: {
    token: "ep",
    expert: { over: "ep", table: [[], [4, 2, 0], [1], [3]] },
  },
}]);

const bits: Case = {
  stored: "bf16",
  calls: [{ x: waves(9 * 40), who: [2, 0, 1, 1, 0, 0, 2, 1, 0] }, {
    x: waves(40, 5),
    who: [1],
  }],
  model: model({ token: upTo(9), embed: 40, ffn: 37, expert: 5 }, (m) => {
    const x = m.input("x", "token embed");
    const logits = dot(x, m.param("router", "expert embed"), "embed");
    const routing = route(logits, {
      over: "expert",
      topK: 3,
      preset: "mixtral",
    });
    const up = dot(
      dispatch(x, routing),
      m.param("up.{expert}", "expert ffn embed"),
      "embed",
    );
    const y = combine(
      dot(up, m.param("down.{expert}", "expert embed ffn"), "ffn"),
      routing,
    );
    const slotted = route(logits, {
      over: "expert",
      topK: 2,
      preset: "fairscale.top2",
      choice: "pair",
      group: m.input("who", "token", { dtype: "i32" }),
    });
    const z = combine(dispatch(x, slotted), slotted);
    const after = dot(
      rmsNorm(add(add(x, y), z), m.param("gain", "embed"), "embed"),
      m.param("after", "ffn embed"),
      "embed",
    );
    return {
      y,
      z,
      after,
      all: softmax(after, "ffn"),
      total: sum(after, "ffn"),
    };
  }),
};
const PLACES: readonly CompileOptions[] = [
  ...MESHES,
  {
    mesh: { ep: 2 },
    place: { token: "ep", expert: { over: "ep", table: [[3, 0], [1, 4, 2]] } },
  },
  { mesh: { dp: 2 }, place: { token: "dp" } },
  { tuning: { matmul: { rows: 2, columns: 2, lanes: 8 } } },
  { mesh: { ep: 2 }, tuning: { matmul: { rows: 1, columns: 4, lanes: 16 } } },
];
for (const kind of ["cpu", "gpu"] as const) {
  t.test(`the same bits on every mesh and with every tile, ${kind}`, {
    skip: kind === "gpu" && skip,
  }, async (t) => {
    await matches(t, bits, kind);
    const wanted = digest(await runCase(bits, kind));
    for (const options of PLACES.slice(1)) {
      t.equal(
        digest(await runCase(bits, kind, options)),
        wanted,
        JSON.stringify(options),
      );
    }
  });
}

t.test("checks of a run find nothing", async (t) => {
  for (const options of PLACES.slice(0, 6)) {
    const results = await runCase(bits, "cpu", { ...options, check: true });
    for (const outputs of results) {
      const counts = [outputs["check.0"]!, outputs["check.1"]!];
      t.same(
        counts.map(({ data }) => Math.max(...data)),
        [0, 0],
        JSON.stringify(options),
      );
    }
  }
});
