/** Blocks: scopes with local axes. */
// needs: cpu

import t from "tap";
import {
  add,
  compile,
  dot,
  model,
  route,
  type Scope,
  sum,
  type Tensor,
  topK,
  trace,
  upTo,
} from "../compiler/mod.ts";
import { compileDocument, modelDocument } from "../compiler/document/mod.ts";
import { evaluate } from "../compiler/graph/evaluate/evaluate.ts";
import { twoMoe } from "../examples/two_moe.ts";
import { layersOf } from "../spec/plan/layers.ts";
import { formatPlan } from "../spec/mod.ts";
import { messageOf } from "./helpers/mistakes.ts";
import {
  closeDevices,
  digest,
  runCase,
  tensorsOf,
} from "./helpers/run_model.ts";
import { twoMoeReference } from "./helpers/two_moe.ts";

t.teardown(closeDevices);

type Rows = Tensor<"token embed", "f32">;
type RowScope = Scope<"token" | "embed">;

/** A model of 2 tokens. */
function small(build: (m: RowScope, x: Rows) => Tensor) {
  return model({ token: 2, embed: 4 }, (m) => ({
    y: build(m, m.input("x", "token embed")),
  }));
}

t.test("a block used twice with different sizes gives the same bytes on every mesh, close to a reference", async (t) => {
  const rows = Array.from(
    { length: 11 },
    (_, i) => Array.from({ length: 32 }, (_, j) => Math.sin(7 * i + 3 * j) / 4),
  );
  const of = { model: twoMoe, calls: [{ x: rows.flat() }] };
  const bytes = new Set<string>();
  for (const ep of [1, 2, 4]) {
    const results = await runCase(of, "cpu", { mesh: { ep } });
    bytes.add(digest(results));
    const wanted = await twoMoeReference(
      await tensorsOf(of),
      rows.map((row) => row.map(Math.fround)),
    );
    const found = [...results[0]!["y"]!.data];
    t.equal(found.length, wanted.length);
    const scale = Math.max(...wanted.map(Math.abs));
    const maxError = Math.max(...found.map((y, i) => Math.abs(y - wanted[i]!)));
    t.ok(maxError < 1e-6 * scale, `${maxError} of ${scale} on ep=${ep}`);
    t.comment(`${maxError / scale} relative to the largest value`);
  }
  t.equal(bytes.size, 1);
});

t.test("plans name steps, axes and parameters by their block", async (t) => {
  const plan = await compile(twoMoe, { mesh: { ep: 2 } });
  const sizes = Object.entries(plan.axes).map(([name, { size }]) =>
    `${name} ${size}`
  );
  for (
    const line of [
      ...["layers.0.moe.expert/ep 6", "layers.1.moe.expert/ep 10"],
      ...["layers.0.moe.choice 2", "layers.1.moe.choice 3"],
      ...["layers.0.moe.shared.ffn 24", "layers.1.moe.ffn 40"],
    ]
  ) t.ok(sizes.includes(line), line, { sizes });
  t.ok(
    plan.weights.some(({ source }) =>
      source === "layers.1.moe.experts.{expert}.up"
    ),
  );
  const [program] = plan.programs;
  const blocks = new Set(program!.steps.map(({ block }) => block));
  t.ok(blocks.has("layers.0.moe") && blocks.has("layers.1.moe.shared"));
  t.strictSame(layersOf(plan, program!).names, ["layer 0", "layer 1"]);
  const text = formatPlan(plan);
  t.match(
    text,
    /dot over embed : f32\[token\/ep expert\].*\/\/ layers\.0\.moe /,
  );
  t.match(text, /= dispatch .* : f32\[layers\.1\.moe\.expert\/ep:10 slot /);
  // The saved document compiles to the same plan.
  const options = { mesh: { ep: 2 } };
  const document = await modelDocument(twoMoe, { options });
  const again = compileDocument(
    JSON.parse(JSON.stringify(document)) as { [field: string]: unknown },
  );
  t.equal(formatPlan(again), text);
});

t.test("a placement names an axis in all blocks, or in one", async (t) => {
  const placed = async (place: { [axis: string]: string }) => {
    const plan = await compile(twoMoe, { mesh: { ep: 2 }, place });
    return Object.entries(plan.axes)
      .flatMap(([name, { over, table }]) => over && table ? [name] : []);
  };
  t.strictSame(await placed({ token: "ep", expert: "ep" }), [
    ...["layers.0.moe.expert/ep", "layers.1.moe.expert/ep"],
  ]);
  t.strictSame(
    await placed({ token: "ep", "layers.1.moe.expert": "ep" }),
    ["layers.1.moe.expert/ep"],
  );
  await t.rejects(
    placed({ token: "ep", "layers.2.moe.expert": "ep" }),
    { message: /^Cannot place axis 'layers\.2\.moe\.expert': .*'expert'/ },
  );
});

t.test("blocks are nested, hide names, and are the same under one name", (t) => {
  const inner = (m: Scope<"token" | "embed" | "ffn">, x: Rows) =>
    dot(
      dot(x, m.param("up", "ffn embed"), "embed"),
      m.param("down", "embed ffn"),
      "ffn",
    );
  const graph = trace(model({ token: upTo(4), embed: 4, ffn: 3 }, (m) => {
    const x = m.input("x", "token embed");
    const y = m.block(
      "a",
      { ffn: 5 },
      (m) => add(inner(m, x), m.block("b", { ffn: 7 }, (m) => inner(m, x))),
    );
    return { y: add(y, m.block("a", { ffn: 5 }, (m) => inner(m, x))) };
  }));
  const params = graph.nodes.flatMap(({ primitive, params, axes }) =>
    primitive === "param" && "name" in params
      ? [`${params.name}: ${axes.join(" ")}`]
      : []
  );
  t.strictSame(params, [
    ...["a.up: a.ffn embed", "a.down: embed a.ffn"],
    ...["a.b.up: a.b.ffn embed", "a.b.down: embed a.b.ffn"],
  ]);
  const { outputs } = evaluate(graph, {
    inputs: { x: [1, 0, 0, 0] },
    params: {
      "a.up": new Array(20).fill(1) as number[],
      "a.down": new Array(20).fill(1) as number[],
      "a.b.up": new Array(28).fill(1) as number[],
      "a.b.down": new Array(28).fill(1) as number[],
    },
  });
  t.strictSame([...outputs.y!.data], [17, 17, 17, 17]);
  t.end();
});

t.test("rejected blocks", (t) => {
  const cases: [(m: RowScope, x: Rows) => Tensor, string][] = [
    [
      (m, x) =>
        m.block(
          "a",
          { ffn: 5 },
          (m): Tensor => dot(x, m.param("w", "ffn embed"), "embed"),
        ),
      "Cannot return 'token ffn' from a block: axis 'ffn' is local to it",
    ],
    [
      (m, x) => m.block("a", {}, () => topK(x, { over: "embed", k: 2 }).values),
      "Cannot return 'token choice' from a block: axis 'choice' is local to it",
    ],
    [
      (m, x) => m.block("a b", {}, () => x),
      "Cannot name a block 'a b': a name is letters, digits, '_' and '-', in parts joined by '.'",
    ],
    [
      (m, x) =>
        add(m.block("a", { n: 2 }, () => x), m.block("a", { n: 3 }, () => x)),
      "Cannot declare axis 'a.n' of 3: it is 2 already. Give the block another name",
    ],
    [
      (m) => m.block("a", {}, () => undefined as never),
      "Cannot return from block 'a': it is no tensor",
    ],
    [
      (m, x) => {
        const kept: Tensor<"token expert", "f32">[] = [];
        for (const name of ["a", "b"]) {
          m.block(name, { expert: 3 }, (m) => {
            const logits = dot(x, m.param("router", "expert embed"), "embed");
            kept.push(logits);
            return x;
          });
        }
        return add(kept[0]!, kept[1]!);
      },
      "Cannot add 'token expert' with 'token expert': axis 'expert' is of another block in each",
    ],
    [
      (m, x) =>
        m.block("a", { expert: 3 }, (m) => {
          const logits = dot(x, m.param("router", "expert embed"), "embed");
          const [two, three] = [2, 3].map((topK) =>
            route(logits, { over: "expert", topK, preset: "mixtral" })
          );
          const weights = add(
            sum(two!.weight, "choice"),
            sum(three!.weight, "choice"),
          );
          return add(x, weights);
        }),
      "Cannot make axis 'a.choice' of 3: its size in this model is 2. Name it by the option 'choice' of 'route', such as { choice: 'choice2' }, or route in a block",
    ],
  ];
  for (const [build, message] of cases) {
    t.equal(messageOf(() => trace(small(build))), message);
  }
  t.end();
});
