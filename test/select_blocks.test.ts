/** Selected blocks of keys and attention to them, on meshes, against the reference evaluator. */
// needs: cpu, gpu
// rotates with: compiler/kernels/attention/score_blocks.ts, compiler/kernels/attention/select_keys.ts, compiler/passes/lower/select_blocks.ts, compiler/graph/primitives/select_blocks.ts

import t from "tap";
import { evaluate } from "../compiler/graph/evaluate/evaluate.ts";
import { trace } from "../compiler/graph/trace.ts";
import {
  attention,
  dot,
  latentAttention,
  type Model,
  model,
  mul,
  selectBlocks,
  sum,
  upTo,
} from "../compiler/mod.ts";
import { GUARANTEED_LIMITS } from "../spec/limits.ts";
import {
  gradientsHold,
  graphWithGradients,
  paramWaves,
} from "./helpers/gradients.ts";
import { skipUnasked } from "./helpers/needs.ts";
import {
  closeDevices,
  digest,
  holds,
  keepsBits,
  matches,
  runCase,
  waves,
} from "./helpers/run_model.ts";
import { tokenRuns } from "./helpers/token_runs.ts";

t.teardown(closeDevices);

interface Blocks {
  readonly block: number;
  /** Undefined: attention to all keys. */
  readonly k?: number;
  readonly first?: number;
  readonly local?: number;
  readonly context: number;
  readonly dim?: number;
}

const SIZES = { head: 4, kvHead: 2, embed: 3, indexDim: 5 };

/** Attention to the blocks that an indexer selects for each key head. */
function netOf({ k, context, dim = 6, ...blocks }: Blocks): Model {
  const sizes = { ...SIZES, dim, token: upTo(80), sequence: 2, context };
  return model(sizes, (m) => {
    const at = (name: string) => m.input(name, "token", { dtype: "i32" });
    const where = { sequence: at("sequence"), position: at("position") };
    const x = m.input("x", "token embed");
    const picked = selectBlocks(
      dot(x, m.param("iq", "kvHead indexDim embed"), "embed"),
      {
        key: dot(x, m.param("ik", "indexDim embed"), "embed"),
        keys: m.state("index", "sequence context indexDim"),
        k: k ?? 3,
        ...blocks,
        ...where,
      },
    );
    const { y, keys, values } = attention(
      dot(x, m.param("q", "head dim embed"), "embed"),
      {
        key: dot(x, m.param("k", "kvHead dim embed"), "embed"),
        value: dot(x, m.param("v", "kvHead dim embed"), "embed"),
        keys: m.state("keys", "sequence context kvHead dim"),
        values: m.state("values", "sequence context kvHead dim"),
        sinks: m.param("sinks", "head"),
        ...where,
        ...k === undefined
          ? {}
          : { selected: picked.selected, selectedBlock: blocks.block },
      },
    );
    const total = sum(sum(y, "dim"), "head");
    return {
      selected: picked.selected,
      index: picked.keys,
      y,
      keys,
      values,
      loss: sum(mul(total, total), "token"),
    };
  });
}

const CALLS = [
  tokenRuns([1, 0, 70], [0, 0, 7]),
  tokenRuns([0, 7, 8], [1, 70, 72]),
];

const MESHES = [
  {},
  { mesh: { tp: 2 }, place: { head: "tp" } },
  { mesh: { tp: 4 }, place: { head: "tp" } },
  { mesh: { dp: 2, tp: 2 }, place: { token: "dp", head: "tp" } },
] as const;

const FEW = netOf({ block: 5, k: 3, first: 1, local: 1, context: 77 });

holds("small blocks", { model: FEW, calls: CALLS }, MESHES);
holds(
  "blocks of 32 keys",
  {
    model: netOf({ block: 32, k: 2, local: 1, context: 96, dim: 32 }),
    calls: CALLS,
  },
  [{}],
);

const LONG = {
  model: netOf({ block: 32, k: 4, local: 1, context: 192, dim: 32 }),
  calls: [
    tokenRuns([1, 0, 80]),
    tokenRuns([1, 80, 160]),
    tokenRuns([0, 0, 3], [1, 160, 161]),
  ],
};
const SPLIT = { tuning: { splitKeys: 2 } };
holds("four blocks of keys, split or not", LONG, [
  {},
  { tuning: { splitKeys: 80, headMajor: true } },
  { ...SPLIT, mesh: { tp: 2 }, place: { head: "tp" } },
]);

t.test("split blocks of keys have the same bits", {
  skip: skipUnasked("cpu"),
}, async (t) => {
  t.equal(
    digest(await runCase(LONG, "cpu", { tuning: { splitKeys: 80 } })),
    digest(await runCase(LONG, "cpu")),
  );
});

keepsBits("bits of one rank", { model: FEW, calls: CALLS }, MESHES);

t.test("steps of one token and of many have the same bits", {
  skip: skipUnasked("cpu"),
}, async (t) => {
  const run = (calls: ReturnType<typeof tokenRuns>[]) =>
    runCase({
      model: FEW,
      // The input of a token depends on its position only.
      calls: calls.map(({ position, sequence }) => ({
        sequence,
        position,
        x: position.flatMap((p) => waves(3, p)),
      })),
    }, "cpu");
  const one = Array.from({ length: 40 }, (_, p) => tokenRuns([0, p, p + 1]));
  const [atOnce, alone] = await Promise.all([
    run([tokenRuns([0, 0, 40])]),
    run(one),
  ]);
  for (const name of ["selected", "y"]) {
    t.strictSame(
      alone.flatMap((outputs) => [...outputs[name]!.data]),
      [...atOnce[0]![name]!.data],
      name,
    );
  }
});

t.test("selection of all blocks equals attention to all keys", {
  skip: skipUnasked("cpu"),
}, async (t) => {
  for (const block of [7, 32]) {
    const [some, all] = await Promise.all(
      [11, undefined].map((k) =>
        runCase({
          model: netOf({ block, context: 72, ...k ? { k } : {} }),
          calls: CALLS,
        }, "cpu")
      ),
    );
    for (const [i, { y }] of some!.entries()) {
      t.strictSame(y!.data, all![i]!["y"]!.data, `blocks of ${block}`);
    }
  }
});

t.test("of equal scores, the first blocks are selected", {
  skip: skipUnasked("cpu"),
}, async (t) => {
  const net = model({
    token: upTo(12),
    head: 2,
    dim: 1,
    sequence: 1,
    context: 12,
  }, (m) =>
    selectBlocks(m.input("query", "token head dim"), {
      key: m.input("key", "token dim"),
      keys: m.state("keys", "sequence context dim"),
      sequence: m.input("sequence", "token", { dtype: "i32" }),
      position: m.input("position", "token", { dtype: "i32" }),
      block: 2,
      local: 1,
      k: 3,
    }));
  const call = {
    ...tokenRuns([0, 0, 12]),
    // The second head prefers small keys.
    query: Array.from({ length: 24 }, (_, i) => i % 2 ? -1 : 1),
    key: [3, 0, 5, 5, 1, 5, 0, -1, 4, 4, 9, 9],
  };
  const of = { model: net, calls: [call] };
  await matches(t, of, "cpu", [{}]);
  const [{ selected } = {}] = await runCase(of, "cpu");
  t.strictSame([...selected!.data.slice(-6)], [1, 2, 5, 0, 3, 5]);
  t.strictSame([...selected!.data.slice(0, 3)], [0, -1, -1]);
});

t.test("derivative", { skip: skipUnasked("cpu") }, async (t) => {
  const net = netOf({ block: 2, k: 2, local: 1, context: 12 });
  const params = paramWaves(net, { ...SIZES, dim: 6 });
  const inputs = { x: waves(36), ...tokenRuns([0, 0, 9], [1, 0, 3]) };
  const graph = await graphWithGradients(net);
  const { outputs } = evaluate(graph, { inputs, params });
  const changes = (name: string) =>
    outputs[`grad.${name}`]?.data.some((x) => x !== 0) ?? false;
  t.strictSame(
    ["iq", "ik", "q", "k", "v", "sinks"].map(changes),
    [false, false, true, true, true, true],
  );
  // The cotangent of keys by head needs one buffer more than every device has.
  const limits = { ...GUARANTEED_LIMITS, maxStorageBuffersPerShaderStage: 9 };
  const meshes = [{ limits }, { ...MESHES[1], limits }];
  await matches(t, { model: graph, calls: [inputs] }, "cpu", meshes);
  await gradientsHold(t, { model: net, inputs, params });
});

t.test("options that cannot be", (t) => {
  const rejects = (blocks: Partial<Blocks>, message: string) =>
    t.throws(
      () => trace(netOf({ block: 2, k: 2, context: 8, ...blocks })),
      { name: "ModelError", message },
    );
  rejects(
    { block: 0 },
    "Cannot select blocks with block 0: expected a whole number from 1 to 16777216",
  );
  rejects(
    { first: 1, local: 2 },
    "Cannot select 2 blocks: 1 first and 2 local ones are always selected. Select at least 3",
  );
  const attend = (options: object) =>
    trace(
      model({ ...SIZES, token: 2, sequence: 1, context: 4, list: 1 }, (m) => {
        const at = (name: string) => m.input(name, "token", { dtype: "i32" });
        return latentAttention(m.input("q", "token head indexDim"), {
          key: m.input("key", "token indexDim"),
          keys: m.state("keys", "sequence context indexDim"),
          value: "indexDim",
          sequence: at("sequence"),
          position: at("position"),
          ...options,
        });
      }),
    );
  t.throws(() => attend({ selectedBlock: 2 }), {
    name: "ModelError",
    message:
      "Cannot attend to selected blocks: no list of blocks is given. Give 'selected', or leave 'selectedBlock' out",
  });
  t.end();
});
