/** Causal depthwise convolution on meshes, and its derivative, against the reference evaluator. */
// needs: cpu, gpu

import t from "tap";
import { add, conv1d, dot, model, mul, sum, upTo } from "../compiler/mod.ts";
import { trace } from "../compiler/graph/trace.ts";
import { evaluate } from "../compiler/graph/evaluate/evaluate.ts";
import { gradientsHold, graphWithGradients } from "./helpers/gradients.ts";
import {
  closeDevices,
  digest,
  holds,
  matches,
  runCase,
  waves,
} from "./helpers/run_model.ts";
import { skipUnasked } from "./helpers/needs.ts";

t.teardown(closeDevices);

const SIZES = {
  token: upTo(5),
  channel: 4,
  embed: 3,
  tap: 4,
  sequence: 3,
};

const netOf = (slot: number) =>
  model({ ...SIZES, slot }, (m) => {
    const at = (name: string) => m.input(name, "token", { dtype: "i32" });
    const x = dot(
      m.input("x", "token embed"),
      m.param("up", "channel embed"),
      "embed",
    );
    const { y, state } = conv1d(x, m.param("weight", "channel tap"), "tap", {
      state: m.state("state", "sequence slot channel"),
      sequence: at("sequence"),
      position: at("position"),
    });
    const loss = sum(sum(mul(y, x), "channel"), "token");
    return { y: add(y, x), state, loss };
  });

const net = netOf(3);

/** Two packed sequences, then a token of each, then five more. */
const CALLS = [
  { sequence: [0, 0, 0, 2, 2], position: [0, 1, 2, 0, 1] },
  { sequence: [2, 0], position: [2, 3] },
  { sequence: [0, 0, 0, 0, 0], position: [4, 5, 6, 7, 8] },
  { sequence: [0, 2], position: [9, 3] },
];

t.test("a sequence split over runs gives the same output", (t) => {
  const graph = trace(net);
  const params = { up: waves(12), weight: waves(16, 2) };
  const inputs = { x: waves(30), sequence: Array(10).fill(0) };
  const run = (from: number, to: number, states = {}) => {
    const position = Array.from({ length: to - from }, (_, i) => from + i);
    return evaluate(graph, {
      inputs: {
        x: inputs.x.slice(3 * from, 3 * to),
        position,
        sequence: position.map(() => 0),
      },
      params,
      states,
    });
  };
  const states = (of: ReturnType<typeof run>) => ({
    state: of.states["state"]!.data,
  });
  const [a, b] = [run(0, 5), run(0, 2)];
  const c = run(2, 5, states(b));
  t.strictSame(
    [...a.outputs["y"]!.data],
    [...b.outputs["y"]!.data, ...c.outputs["y"]!.data],
  );
  const { data } = run(5, 10, states(a)).outputs["y"]!;
  const taps = [2, 3, 4, 5].map((p) => inputs.x.slice(3 * p, 3 * p + 3));
  const up = (row: readonly number[]) =>
    row.reduce((sum, v, i) => sum + v * params.up[i]!, 0);
  const wanted = taps.reduce(
    (sum, row, j) => sum + up(row) * params.weight[j]!,
    up(taps[3]!),
  );
  t.ok(Math.abs(data[0]! - wanted) < 1e-5, "a sum over four positions");
  t.end();
});

holds("conv1d in one run and over several", { model: net, calls: CALLS }, [
  {},
  { mesh: { tp: 2 }, place: { channel: "tp" } },
  { mesh: { dp: 2, tp: 2 }, place: { token: "dp", channel: "tp" } },
]);

t.test("bits of one rank", { skip: skipUnasked("cpu") }, async (t) => {
  const of = { model: net, calls: CALLS };
  const alone = digest(await runCase(of, "cpu"));
  const mesh = {
    mesh: { dp: 2, tp: 2 },
    place: { token: "dp", channel: "tp" },
  };
  t.equal(digest(await runCase(of, "cpu", mesh)), alone);
});

t.test("derivative", { skip: skipUnasked("cpu") }, async (t) => {
  const inputs = { x: waves(15), ...CALLS[0] };
  const params = { up: waves(12), weight: waves(16, 2) };
  await gradientsHold(t, { model: net, inputs, params });
  const model = await graphWithGradients(net);
  await matches(t, { model, calls: [inputs] }, "cpu", [
    {},
    { mesh: { dp: 2, tp: 2 }, place: { token: "dp", channel: "tp" } },
  ]);
});

t.test("the state has one slot less than taps", (t) => {
  t.throws(() => trace(netOf(4)), {
    name: "ModelError",
    message:
      "Cannot conv1d over 'tap' of 4: the state has 4 slots 'slot'. It must have one less than there are taps",
  });
  t.end();
});
