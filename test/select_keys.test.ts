/** Selected keys and attention to them, on meshes, against the reference evaluator. */
// needs: cpu, gpu
// rotates with: compiler/kernels/attention/select_keys.ts, compiler/passes/lower/select_keys.ts, compiler/graph/primitives/select_keys.ts

import t from "tap";
import { evaluate } from "../compiler/graph/evaluate/evaluate.ts";
import { trace } from "../compiler/graph/trace.ts";
import {
  add,
  attention,
  cacheRows,
  div,
  dot,
  latentAttention,
  maximum,
  type Model,
  model,
  mul,
  selectKeys,
  sub,
  sum,
  upTo,
} from "../compiler/mod.ts";
import {
  gradientsHold,
  graphWithGradients,
  paramWaves,
} from "./helpers/gradients.ts";
import { GUARANTEED_LIMITS } from "../spec/limits.ts";
import { skipUnasked } from "./helpers/needs.ts";
import {
  closeDevices,
  holds,
  keepsBits,
  matches,
  runCase,
  waves,
} from "./helpers/run_model.ts";
import { tokenRuns } from "./helpers/token_runs.ts";

t.teardown(closeDevices);

interface Sizes {
  /** Keys per token; undefined: attention to all keys, without selection. */
  readonly k?: number;
  readonly context: number;
  readonly indexHead?: number;
  readonly indexDim?: number;
}

/** Both kinds of attention, to keys selected by one indexer. */
function netOf(
  { k, context, indexHead = 6, indexDim = 5 }: Sizes,
): Model {
  const sizes = { head: 4, kvHead: 2, dim: 6, value: 4 };
  return model({
    ...sizes,
    token: upTo(80),
    sequence: 2,
    context,
    embed: 3,
    indexHead,
    indexDim,
  }, (m) => {
    const at = (name: string) => m.input(name, "token", { dtype: "i32" });
    const where = { sequence: at("sequence"), position: at("position") };
    const x = m.input("x", "token embed");
    const picked = selectKeys(
      dot(x, m.param("iq", "indexHead indexDim embed"), "embed"),
      {
        key: dot(x, m.param("ik", "indexDim embed"), "embed"),
        keys: m.state("index", "sequence context indexDim"),
        weights: dot(x, m.param("iw", "indexHead embed"), "embed"),
        k: k ?? 1,
        ...where,
      },
    );
    const selected = k === undefined ? {} : { selected: picked.selected };
    const q = dot(x, m.param("q", "head dim embed"), "embed");
    const latent = latentAttention(q, {
      key: dot(x, m.param("c", "dim embed"), "embed"),
      keys: m.state("latents", "sequence context dim"),
      value: "value",
      ...where,
      ...selected,
    });
    const grouped = attention(q, {
      key: dot(x, m.param("k", "kvHead dim embed"), "embed"),
      value: dot(x, m.param("v", "kvHead dim embed"), "embed"),
      keys: m.state("keys", "sequence context kvHead dim"),
      values: m.state("values", "sequence context kvHead dim"),
      sinks: m.param("sinks", "head"),
      ...where,
      ...selected,
    });
    const total = add(
      sum(sum(grouped.y, "dim"), "head"),
      sum(sum(latent.y, "value"), "head"),
    );
    return {
      selected: picked.selected,
      index: picked.keys,
      l: latent.y,
      latents: latent.keys,
      y: grouped.y,
      keys: grouped.keys,
      values: grouped.values,
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
  { mesh: { dp: 2, tp: 2 }, place: { token: "dp", head: "tp" } },
] as const;

holds("few keys", {
  model: netOf({ k: 5, context: 80 }),
  calls: CALLS,
}, MESHES);
holds("more than a block of keys and elements", {
  model: netOf({ k: 34, context: 72, indexHead: 40, indexDim: 36 }),
  calls: CALLS,
}, [{}]);

keepsBits("bits of one rank", {
  model: netOf({ k: 5, context: 80 }),
  calls: CALLS,
}, MESHES);

t.test("selection of all keys equals attention to all keys", {
  skip: skipUnasked("cpu"),
}, async (t) => {
  const calls = CALLS;
  const [some, all] = await Promise.all(
    [72, undefined].map((k) =>
      runCase(
        { model: netOf({ ...k ? { k } : {}, context: 72 }), calls },
        "cpu",
      )
    ),
  );
  for (const [i, outputs] of some!.entries()) {
    for (const name of ["l", "y"]) {
      t.strictSame(outputs[name]!.data, all![i]![name]!.data, name);
    }
  }
});

/** A window, and entries of three tokens each: selected by their scores, or all. */
function windowsOf(indexed: boolean): Model {
  return model({
    token: upTo(80),
    sequence: 2,
    context: 80,
    entry: 27,
    head: 4,
    dim: 6,
    value: 6,
    embed: 3,
    indexHead: 2,
    indexDim: 5,
  }, (m) => {
    const at = (name: string) => m.input(name, "token", { dtype: "i32" });
    const where = { sequence: at("sequence"), position: at("position") };
    const x = m.input("x", "token embed");
    const complete = div(add(where.position, 1), 3);
    const completes = maximum(sub(mul(complete, 3), where.position), 0);
    const write = sub(mul(completes, complete), 1);
    const last = sub(complete, 1);
    const entries = cacheRows(
      m.state("entries", "sequence entry dim"),
      dot(x, m.param("e", "dim embed"), "embed"),
      { sequence: where.sequence, position: write },
    );
    const picked = selectKeys(
      dot(x, m.param("iq", "indexHead indexDim embed"), "embed"),
      {
        key: dot(x, m.param("ik", "indexDim embed"), "embed"),
        keys: m.state("index", "sequence entry indexDim"),
        weights: dot(x, m.param("iw", "indexHead embed"), "embed"),
        k: 4,
        sequence: where.sequence,
        position: write,
        last,
      },
    );
    const { y, keys } = latentAttention(
      dot(x, m.param("q", "head dim embed"), "embed"),
      {
        key: dot(x, m.param("c", "dim embed"), "embed"),
        keys: m.state("latents", "sequence context dim"),
        value: "value",
        window: 7,
        sinks: m.param("sinks", "head"),
        entries,
        ...indexed ? { selected: picked.selected } : { last },
        ...where,
      },
    );
    return { y, latents: keys, entries, index: picked.keys };
  });
}

for (const indexed of [true, false]) {
  const of = { model: windowsOf(indexed), calls: CALLS };
  const title = indexed ? "selected entries" : "all entries";
  holds(`a window and ${title}`, of, MESHES);
  keepsBits(`a window and ${title}: bits of one rank`, of, MESHES);
}

t.test("among equal scores, the first keys are selected", {
  skip: skipUnasked("cpu"),
}, async (t) => {
  const net = model({
    token: upTo(8),
    head: 1,
    dim: 1,
    sequence: 1,
    context: 8,
  }, (m) =>
    selectKeys(m.input("query", "token head dim"), {
      key: m.input("key", "token dim"),
      keys: m.state("keys", "sequence context dim"),
      weights: m.input("weights", "token head"),
      sequence: m.input("sequence", "token", { dtype: "i32" }),
      position: m.input("position", "token", { dtype: "i32" }),
      k: 3,
    }));
  const call = {
    ...tokenRuns([0, 0, 8]),
    query: new Array<number>(8).fill(1),
    weights: new Array<number>(8).fill(-1),
    // Negative products give the score -0.
    key: [2, -1, 1, 0, -3, 1, 4, -2],
  };
  const of = { model: net, calls: [call] };
  await matches(t, of, "cpu", [{}]);
  const [{ selected } = {}] = await runCase(of, "cpu");
  t.strictSame([...selected!.data.slice(-3)], [1, 3, 4]);
});

t.test("derivative", { skip: skipUnasked("cpu") }, async (t) => {
  const net = netOf({ k: 3, context: 8 });
  const params = paramWaves(net, {
    head: 4,
    kvHead: 2,
    dim: 6,
    embed: 3,
    indexHead: 6,
    indexDim: 5,
  });
  const inputs = { x: waves(27), ...tokenRuns([0, 0, 6], [1, 0, 3]) };
  const attends = ["q", "k", "v", "c", "sinks"];
  const graph = await graphWithGradients(net);
  const { outputs } = evaluate(graph, { inputs, params });
  for (const name of ["iq", "ik", "iw"]) {
    const gradient = outputs[`grad.${name}`]?.data ?? [0];
    t.ok(
      gradient.every((x) => x === 0),
      `the selection has no gradient by ${name}`,
    );
  }
  t.ok(attends.every((name) => outputs[`grad.${name}`]!.data.some((x) => x)));
  // The cotangent of keys by head needs one buffer more than every device has.
  const limits = { ...GUARANTEED_LIMITS, maxStorageBuffersPerShaderStage: 9 };
  const meshes = [{ limits }, { ...MESHES[2], limits }];
  await matches(t, { model: graph, calls: [inputs] }, "cpu", meshes);
  await gradientsHold(t, { model: net, inputs, params });
});

t.test("mismatched operands", (t) => {
  t.throws(() => trace(netOf({ k: 0, context: 8 })), {
    name: "ModelError",
    message: "Cannot select 0 keys: expected a whole number from 1 to 16777216",
  });
  t.end();
});
