/** Placements that move values: experts over ranks with the same tokens, tensor parallelism, any mesh names. */
// needs: cpu, gpu

import t, { type Test } from "tap";
import {
  add,
  attention,
  combine,
  compile,
  type CompileOptions,
  dispatch,
  dot,
  embedding,
  map,
  merge,
  type Model,
  model,
  mul,
  rmsNorm,
  route,
  split,
  type Tensor,
  upTo,
} from "../compiler/mod.ts";
import { onRank } from "../spec/plan/plan.ts";
import { compileRefused } from "./helpers/compile_refused.ts";
import { isInGpuTurn } from "./helpers/needs.ts";
import {
  type Case,
  closeDevices,
  digest,
  matches,
  runCase,
  skip,
} from "./helpers/run_model.ts";

t.teardown(closeDevices);

const token = upTo(8);

/** Checks one rank against the reference, and that other placements have the same bits. */
function sameBits(
  name: string,
  of: Case,
  meshes: readonly CompileOptions[],
): void {
  const check =
    (kind: "cpu" | "gpu", on: readonly CompileOptions[]) => async (t: Test) => {
      await matches(t, of, kind, [{}]);
      const wanted = digest(await runCase(of, kind, {}));
      for (const options of on) {
        const found = digest(await runCase(of, kind, options));
        t.equal(found, wanted, JSON.stringify(options));
      }
    };
  t.test(name, check("cpu", meshes));
  if (!isInGpuTurn(name)) return;
  t.test(`${name}, on a GPU`, { skip }, check("gpu", meshes.slice(0, 2)));
}

sameBits("experts over ranks with the same tokens", {
  model: model({ token, embed: 4, expert: 4 }, (m) => {
    const x = m.input("x", "token embed");
    const routing = route(m.input("logits", "token expert"), {
      over: "expert",
      topK: 2,
      preset: "mixtral",
    });
    const w = m.param("w", "expert embed");
    return { y: add(x, combine(mul(dispatch(x, routing), w), routing)) };
  }),
}, [
  { mesh: { ep: 2 }, place: { expert: "ep" } },
  { mesh: { ep: 3 }, place: { expert: "ep" } },
  { mesh: { dp: 2, ep: 2 }, place: { expert: ["ep", "dp"], token: "dp" } },
  { mesh: { tp: 4 } },
  { mesh: { dp: 2, tp: 2, ep: 2 } },
]);

/** A model with experts and a dense block. */
function experts(ffn: number): Model {
  return model({ token, embed: 8, expert: 4, ffn, inner: 32 }, (m) => {
    const x = m.input("x", "token embed");
    const routing = route(m.input("logits", "token expert"), {
      over: "expert",
      topK: 2,
      preset: "mixtral",
    });
    const up = m.param("up", "expert ffn embed");
    const down = m.param("down", "expert embed ffn");
    const hidden = map(
      (u) => u / (1 + Math.exp(-u)),
      dot(dispatch(x, routing), up, "embed"),
    );
    const y = combine(dot(hidden, down, "ffn"), routing);
    const dense = dot(x, m.param("in", "inner embed"), "embed");
    return { y: add(y, dot(dense, m.param("out", "embed inner"), "inner")) };
  });
}

t.test("slices of experts add to the results of entire experts", async (t) => {
  const of = { model: experts(32), tolerance: 1e-5 };
  const sliced = { sliceExperts: true, numerics: "fast" } as const;
  await matches(t, of, "cpu", [
    { mesh: { tp: 2 }, ...sliced },
    { mesh: { tp: 8 }, ...sliced },
    { mesh: { ep: 2, tp: 2 }, ...sliced },
    { mesh: { dp: 2, ep: 3, tp: 2 }, ...sliced, chunks: 2 },
    { mesh: { node: 2, ep: 2, tp: 2 }, ...sliced },
    { mesh: { ep: 2, tp: 2 }, ...sliced, dispatcher: "gatherWeights" },
    { mesh: { ep: 2, tp: 2 }, ...sliced, dispatcher: "allGather" },
    { mesh: { ep: 2, tp: 2 }, ...sliced, deduplicate: true },
    { mesh: { ep: 2, tp: 2 }, ...sliced, receiveRows: "1x" },
  ]);
  const wire = "bf16" as const;
  await matches(t, { ...of, tolerance: 0.05 }, "cpu", [
    { mesh: { ep: 2, tp: 2 }, ...sliced, wire },
  ]);
  const plan = await compile(of.model, { mesh: { tp: 4 }, ...sliced });
  const { bytes } = plan.buffers["up"]!;
  t.equal(onRank(bytes, 3), 4 * 8 * 8 * 4, "a quarter of each expert");
});

compileRefused(
  "slices of experts with exact numerics",
  experts(32),
  { mesh: { tp: 2 }, sliceExperts: true },
  "Cannot slice experts: the results of a token are added in another order than one rank does, and numerics are 'exact'. Compile with 'fast' numerics, or with entire experts",
);

compileRefused(
  "slices of experts that ranks cannot shard",
  experts(18),
  { mesh: { tp: 4 }, sliceExperts: true, numerics: "fast" },
  "Cannot shard axis 'ffn' over 'tp': its size, 18, is no multiple of 4. Use tp=1, tp=2, tp=3, or change its placement",
);

sameBits("a parameter used by experts and a router", {
  model: model({ token, embed: 4, expert: 4 }, (m) => {
    const x = m.input("x", "token embed");
    const w = m.param("w", "expert embed");
    const routing = route(dot(x, w, "embed"), {
      over: "expert",
      topK: 2,
      preset: "mixtral",
    });
    return { y: combine(mul(dispatch(x, routing), w), routing) };
  }),
}, [{ mesh: { ep: 2 } }, { mesh: { tp: 2 } }]);

for (const kind of ["param", "input"] as const) {
  sameBits(`a sharded vocabulary of a table that is a ${kind}`, {
    model: model(
      { token, vocab: 8, embed: 4 },
      (m) => ({
        y: embedding(
          kind === "param"
            ? m.param("table", "vocab embed")
            : m.input("table", "vocab embed"),
          m.input("ids", "token", { dtype: "i32" }),
          "vocab",
        ),
      }),
    ),
    calls: [{ ids: [7, 0, 3, 4, 4, 2, 1, 6] }, { ids: [5] }],
  }, [
    { mesh: { dp: 2 }, place: { vocab: "dp" } },
    { mesh: { a: 2, b: 2 }, place: { vocab: "b", token: "a" } },
  ]);
}

/** Attention with grouped key heads and a feed-forward block, which tensor parallelism shards. */
function block(
  heads: number,
  kvHeads: number,
  more: (
    keys: Tensor<"sequence context kvHead dim", "f32">,
  ) => { [name: string]: Tensor<string, "f32"> } = () => ({}),
): Model {
  const dim = 8;
  return model({
    token,
    vocab: 16,
    embed: 32,
    head: heads,
    kvHead: kvHeads,
    dim,
    ffn: 64,
    query: heads * dim,
    keyValue: kvHeads * dim,
    sequence: 2,
    context: 8,
  }, (m) => {
    const table = m.param("table", "vocab embed");
    const ids = m.input("ids", "token", { dtype: "i32" });
    const x = embedding(table, ids, "vocab");
    const rows = rmsNorm(x, m.param("g", "embed"), "embed");
    const heads = (name: string) =>
      split(
        dot(rows, m.param(name, "keyValue embed"), "embed"),
        "keyValue",
        "kvHead dim",
      );
    const cache = "sequence context kvHead dim";
    const q = dot(rows, m.param("q", "query embed"), "embed");
    const { y, keys, values } = attention(split(q, "query", "head dim"), {
      key: heads("k"),
      value: heads("v"),
      keys: m.state("keys", cache),
      values: m.state("values", cache),
      sequence: m.input("sequence", "token", { dtype: "i32" }),
      position: m.input("position", "token", { dtype: "i32" }),
    });
    const merged = merge(y, "head dim", "query");
    const h = add(x, dot(merged, m.param("o", "embed query"), "query"));
    const up = dot(h, m.param("up", "ffn embed"), "embed");
    const hidden = map((u) => u / (1 + Math.exp(-u)), up);
    const z = add(h, dot(hidden, m.param("down", "embed ffn"), "ffn"));
    return { logits: dot(z, table, "embed"), keys, values, ...more(keys) };
  });
}

const calls: Case["calls"] = [{
  ids: [3, 0, 15, 7, 7, 1],
  sequence: [0, 0, 1, 0, 1, 1],
  position: [0, 1, 0, 2, 1, 2],
}, { ids: [2, 9], sequence: [1, 0], position: [3, 3] }];

const TENSOR_PARALLEL: readonly CompileOptions[] = [
  { mesh: { tp: 2 } },
  {
    mesh: { dp: 2, tp: 2 },
    place: { token: "dp", head: "tp", ffn: "tp", vocab: "tp" },
  },
  { mesh: { tp: 4 } },
  { mesh: { a: 2, b: 2 }, place: { token: "a", head: "b", ffn: ["a", "b"] } },
];
for (const [heads, kvHeads] of [[4, 4], [4, 2], [4, 1], [8, 2]] as const) {
  sameBits(
    `tensor parallelism of ${heads} heads with keys of ${kvHeads}`,
    { model: block(heads, kvHeads), calls, tolerance: 1e-5 },
    TENSOR_PARALLEL,
  );
}

sameBits(
  "heads that are merged with axes of 1",
  {
    model: model(
      { token, embed: 4, query: 8, head: 4, dim: 2, one: 1, each: 4, last: 1 },
      (m) => {
        const x = m.input("x", "token embed");
        const rows = dot(x, m.param("q", "query embed"), "embed");
        const scale = m.param("scale", "one each last");
        const y = mul(
          split(rows, "query", "head dim"),
          merge(scale, "one each last", "head"),
        );
        const merged = merge(y, "head dim", "query");
        return { y: dot(merged, m.param("o", "embed query"), "query") };
      },
    ),
    calls: [{ x: [1, -2, 3, 0.5, 0.25, 1, -1, 2] }],
    tolerance: 1e-5,
  },
  [{ mesh: { tp: 2 }, place: { head: "tp" } }],
);

compileRefused(
  "heads that ranks cannot shard",
  block(4, 2),
  { mesh: { tp: 3 } },
  "Cannot shard axis 'head' over 'tp': its size, 4, is no multiple of 3. Use tp=1, tp=2, or change its placement",
);

const numbers = (from: number, to: number) =>
  Array.from({ length: to - from }, (_, i) => from + i);
compileRefused(
  "unequal columns per rank",
  block(4, 2),
  {
    mesh: { tp: 2 },
    place: { vocab: { over: "tp", table: [numbers(0, 9), numbers(9, 16)] } },
  },
  "Cannot dot 'token embed': ranks have different numbers of items of 'vocab/tp'. Place equally many on each of them",
);

sameBits("caches on the ranks of their sequences", {
  model: block(4, 2),
  calls,
  tolerance: 1e-5,
}, [
  { mesh: { a: 2 }, place: { sequence: "a" } },
  { mesh: { a: 4 }, place: { token: "a" } },
  { mesh: { a: 2 }, place: { sequence: { over: "a", table: [[], [1, 0]] } } },
]);

sameBits("caches that an output uses", {
  model: block(4, 2, (keys) => ({ seen: map((x) => x + 1, keys) })),
  calls,
  tolerance: 1e-5,
}, [{ mesh: { a: 2 }, place: { token: "a" } }, {
  mesh: { a: 2 },
  place: { sequence: { over: "a", table: [[1], [0]] } },
}]);

t.test("a rank allocates caches of its own sequences", async (t) => {
  for (
    const [place, parts] of [
      [{ token: "a" }, "cyclic"],
      [{ head: "a" }, undefined],
    ] as const
  ) {
    const plan = await compile(block(4, 2), { mesh: { a: 2 }, place });
    const { axes: [axis], bytes } = plan.buffers["keys"]!;
    t.strictSame(plan.axes[axis!.axis]!.table, parts);
    // 2 sequences of 8 positions, 2 heads of 8 elements, over 2 ranks in both cases.
    t.equal(bytes, 2 * 8 * 2 * 8 * 4 / 2);
  }
});

compileRefused(
  "tokens on other ranks than the caches of their sequences",
  block(4, 2),
  { mesh: { a: 2, b: 2 }, place: { token: "a", sequence: "b" } },
  "Cannot shard axis 'sequence' over 'b': tokens are sharded over 'a', and those of a sequence are where its cache is. Place 'token' only: 'sequence' follows it",
);

for (const axis of ["context", "dim"]) {
  compileRefused(
    `attention whose '${axis}' is sharded`,
    block(4, 2),
    { mesh: { ep: 2 }, place: { [axis]: "ep" } },
    axis === "context"
      ? "Cannot shard axis 'context' over 'ep': its 8 positions are not divisible into blocks of 32 keys for 2 ranks. Use a multiple of 64, such as 64 (--max-context)"
      : "Cannot shard axis 'dim' over 'ep': caches have all of it on every rank. Leave it out of the placement",
  );
}

for (const place of [{ kvHead: "a" }, { kvHead: "b", head: "a" }]) {
  compileRefused(
    `keys on other ranks than heads, ${JSON.stringify(place)}`,
    block(4, 2),
    { mesh: { a: 2, b: 2 }, place: { token: ["a", "b"], ...place } },
    `Cannot shard axis 'kvHead' over '${place.kvHead}': ranks would not have the keys that items of 'head' there read. Place 'head' only: 'kvHead' follows it`,
  );
}

t.test("a call without rows", async (t) => {
  const of = {
    model: block(4, 2),
    calls: [{ ids: [], sequence: [], position: [] }],
  };
  const one = digest(await runCase(of, "cpu", {}));
  t.equal(digest(await runCase(of, "cpu", { mesh: { tp: 2 } })), one);
});
