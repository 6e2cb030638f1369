/** Linear recurrences on meshes and over split sequences, against the reference evaluator. */
// needs: cpu, gpu
// rotates with: compiler/kernels/linear_recurrence.ts, compiler/graph/gradients/recurrence.ts, compiler/graph/primitives/, compiler/passes/lower/

import t from "tap";
import { evaluate } from "../compiler/graph/evaluate/evaluate.ts";
import { trace } from "../compiler/graph/trace.ts";
import {
  dot,
  linearRecurrence,
  type Model,
  model,
  mul,
  sigmoid,
  sum,
  upTo,
} from "../compiler/mod.ts";
import { gradientsHold, graphWithGradients } from "./helpers/gradients.ts";
import { skipUnasked } from "./helpers/needs.ts";
import {
  closeDevices,
  digest,
  holds,
  matches,
  runCase,
  waves,
} from "./helpers/run_model.ts";

t.teardown(closeDevices);

interface Sizes {
  readonly head: number;
  readonly kvHead: number;
  readonly dim: number;
  readonly value: number;
}

const SMALL: Sizes = { head: 4, kvHead: 2, dim: 6, value: 5 };
/** More keys than a block, and more columns than lanes of a workgroup. */
const LARGE: Sizes = { head: 2, kvHead: 2, dim: 36, value: 34 };

function netOf(
  rule: "delta" | "add",
  { perKey = false, ...sizes }: Sizes & { readonly perKey?: boolean },
): Model {
  return model({ ...sizes, token: upTo(6), sequence: 10, embed: 3 }, (m) => {
    const at = (name: string) => m.input(name, "token", { dtype: "i32" });
    const x = m.input("x", "token embed");
    const value = dot(x, m.param("value", "head value embed"), "embed");
    const { y, state } = linearRecurrence(
      dot(x, m.param("query", "kvHead dim embed"), "embed"),
      mul(dot(x, m.param("key", "kvHead dim embed"), "embed"), 0.5),
      value,
      {
        rule,
        decay: perKey
          ? sigmoid(dot(x, m.param("decays", "head dim embed"), "embed"))
          : sigmoid(dot(x, m.param("decay", "head embed"), "embed")),
        rate: dot(x, m.param("rate", "head embed"), "embed"),
        state: m.state("state", "sequence head dim value"),
        sequence: at("sequence"),
        position: at("position"),
      },
    );
    const loss = sum(sum(sum(mul(y, value), "value"), "head"), "token");
    return { y, state, loss };
  });
}

/** Two packed sequences; a token of each; then one that continues and one that restarts. */
const CALLS = [
  { sequence: [0, 0, 0, 9, 9], position: [0, 1, 2, 0, 1] },
  { sequence: [9, 0], position: [2, 3] },
  { sequence: [0, 0, 0, 0, 9, 9], position: [4, 5, 6, 7, 0, 1] },
];

const MESHES = [
  {},
  { mesh: { tp: 2 }, place: { head: "tp" } },
  { mesh: { tp: 2 }, place: { value: "tp" } },
  { mesh: { dp: 2, tp: 2 }, place: { token: "dp", head: "tp" } },
] as const;

for (const rule of ["delta", "add"] as const) {
  for (const perKey of [false, true]) {
    const small = netOf(rule, { ...SMALL, perKey });
    const title = `"${rule}", a decay of each ${perKey ? "element" : "head"}`;
    holds(
      title,
      { model: small, calls: CALLS },
      perKey ? [{}] : [
        {},
        MESHES[3],
      ],
    );
  }
}
holds("more than a block", { model: netOf("delta", LARGE), calls: CALLS }, [
  {},
]);

t.test("bits of one rank", { skip: skipUnasked("cpu") }, async (t) => {
  const sizes = { ...SMALL, value: 6 };
  const of = { model: netOf("delta", sizes), calls: CALLS };
  const [one, ...others] = await Promise.all(
    MESHES.map(async (options) => digest(await runCase(of, "cpu", options))),
  );
  for (const [i, found] of others.entries()) {
    t.equal(found, one, JSON.stringify(MESHES[i + 1]));
  }
});

t.test("a sequence split over runs gives the same output and state", (t) => {
  const graph = trace(netOf("delta", SMALL));
  const x = waves(6 * 3);
  const params = Object.fromEntries(
    graph.nodes.flatMap((node, i) =>
      node.primitive === "param"
        ? [[
          node.params.name,
          waves(node.axes.reduce((n, a) => n * graph.axes[a]!.size, 1), i),
        ]]
        : []
    ),
  );
  const run = (from: number, to: number, states = {}) => {
    const position = Array.from({ length: to - from }, (_, i) => from + i);
    const { outputs, states: next } = evaluate(graph, {
      inputs: {
        x: x.slice(from * 3, to * 3),
        position,
        sequence: position.map(() => 3),
      },
      params,
      states,
    });
    return { y: [...outputs["y"]!.data], state: next["state"]!.data };
  };
  const expected = run(0, 6);
  const first = run(0, 1);
  const second = run(1, 4, { state: first.state });
  const third = run(4, 6, { state: second.state });
  t.strictSame([...first.y, ...second.y, ...third.y], expected.y);
  t.strictSame(third.state, expected.state);
  t.end();
});

t.test("derivative", { skip: skipUnasked("cpu") }, async (t) => {
  for (const rule of ["delta", "add"] as const) {
    for (
      const sizes of [
        SMALL,
        { ...SMALL, kvHead: 4, dim: 3 },
        { ...SMALL, perKey: true },
        { ...SMALL, kvHead: 1, perKey: true },
      ]
    ) {
      const net = netOf(rule, sizes);
      const params = Object.fromEntries(
        trace(net).nodes.flatMap((node, i) => {
          if (node.primitive !== "param") return [];
          const lengths = { ...sizes, embed: 3 };
          const count = node.axes.reduce(
            (n, axis) => n * lengths[axis as keyof typeof lengths],
            1,
          );
          return [[node.params.name, waves(count, i)]];
        }),
      );
      const inputs = { x: waves(15), ...CALLS[0] };
      await gradientsHold(t, { model: net, inputs, params });
      const model = await graphWithGradients(net);
      // One shared head is not sharded.
      const sharded = sizes.kvHead === 1 ? [] : [MESHES[3]];
      await matches(t, { model, calls: [inputs] }, "cpu", [{}, ...sharded]);
    }
  }
});

t.test("mismatched operands", (t) => {
  const wrong = netOf("delta", { ...SMALL, kvHead: 3 });
  t.throws(() => trace(wrong), {
    name: "ModelError",
    message:
      "Cannot compute a recurrence: 'head' has 4, which is no multiple of the 3 of 'kvHead'",
  });
  t.end();
});
