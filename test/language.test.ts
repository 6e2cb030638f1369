/** Tracing: the graph of a model, and mistakes that only the complete model shows. */

import { readFileSync } from "node:fs";
import t from "tap";
import {
  add,
  attention,
  combine,
  dispatch,
  dot,
  embedding,
  isModel,
  model,
  mul,
  rename,
  rmsNorm,
  route,
  type Routing,
  softmax,
  sum,
  type Tensor,
  transpose,
  upTo,
} from "../compiler/dsl/mod.ts";
import { checkGraph } from "./helpers/check_graph.ts";
import type { Graph, Node } from "../compiler/graph/graph.ts";
import { trace } from "../compiler/graph/trace.ts";
import {
  errorOf,
  type M,
  messageOf,
  mistake,
  SIZES,
} from "./helpers/mistakes.ts";
import { mixtralLayer } from "./helpers/mixtral_layer.ts";

const HERE = new URL(import.meta.url);
const LAYER = new URL("./helpers/mixtral_layer.ts", import.meta.url);

/** Returns the first line of a file with a text, to compare with spans. */
function lineOf(text: string, file = HERE): number {
  const lines = readFileSync(file, "utf8").split("\n");
  return lines.findIndex((line) => line.includes(text)) + 1;
}

/** A graph as text: one line per node, operands by number. */
function print(graph: Graph): string[] {
  const number = new Map<Node, number>();
  return graph.nodes.map((node, i) => {
    number.set(node, i);
    const inputs = node.inputs.map((input) => ` %${number.get(input)}`);
    return `%${i} = ${node.primitive}${inputs.join("")} : ${node.dtype}[${
      node.axes.join(" ")
    }]`;
  });
}

function routed(m: M, name = "router"): Routing<"token", "expert", "slot"> {
  const logits = dot(
    m.input("x", "token embed"),
    m.param(name, "expert embed"),
    "embed",
  );
  return route(logits, { over: "expert", topK: 2, preset: "mixtral" });
}

t.test("trace() returns the nodes that outputs need, operands first", (t) => {
  const layer = model(
    { token: upTo(4096), embed: 512, ffn: 1024, expert: 8 },
    (m) => {
      m.param("unused", "embed");
      return { y: mixtralLayer(m).y };
    },
  );
  t.ok(isModel(layer));
  t.notOk(isModel({ axes: layer.axes, build: layer.build }));
  const graph = trace(layer);
  t.strictSame(print(graph), [
    "%0 = input : f32[token embed]",
    "%1 = param : f32[expert embed]",
    "%2 = dot %0 %1 : f32[token expert]",
    "%3 = route %2 : f32[token choice]",
    "%4 = dispatch %0 %3 : f32[expert slot embed]",
    "%5 = param : f32[expert ffn embed]",
    "%6 = dot %4 %5 : f32[expert slot ffn]",
    "%7 = param : f32[expert ffn embed]",
    "%8 = dot %4 %7 : f32[expert slot ffn]",
    "%9 = map %6 %8 : f32[expert slot ffn]",
    "%10 = param : f32[expert embed ffn]",
    "%11 = dot %9 %10 : f32[expert slot embed]",
    "%12 = combine %11 %3 : f32[token embed]",
    "%13 = map %0 %12 : f32[token embed]",
  ]);
  t.strictSame(graph.axes, {
    token: { size: 4096, dynamic: true },
    embed: { size: 512, dynamic: false },
    ffn: { size: 1024, dynamic: false },
    expert: { size: 8, dynamic: false },
    choice: { size: 2, dynamic: false },
  });
  const sent = graph.nodes[4]!;
  t.match(sent.span?.file, /mixtral_layer\.ts$/);
  t.equal(sent.span?.line, lineOf("const sent = dispatch(x, routing);", LAYER));
  const lambda = graph.nodes[9]!;
  t.ok(lambda.primitive === "map" && !lambda.params.lambda.lowered);
  t.equal(
    lambda.primitive === "map" ? lambda.params.lambda.span?.line : 0,
    lineOf("const hidden = map((g, u) =>", LAYER),
  );
  t.equal(
    graph.nodes[5]!.primitive === "param" ? graph.nodes[5]!.params.stack : "",
    "expert",
  );
  t.doesNotThrow(() => checkGraph(graph));
  t.end();
});

t.test("trace() rejects values that are not combined by their routing", (t) => {
  const shared = (m: M) => {
    const x = m.input("x", "token embed");
    const first = routed(m, "first"); // first routing
    const second = routed(m, "second"); // second routing
    const sent = dispatch(x, first); // sent by first
    return { x, first, second, sent };
  };
  // `lineOf` finds the first line with a text, so the lines that it must find are above.
  const at = (text: string) => `here:${lineOf(text)}`;
  const route2 = `here:${
    lineOf(
      'return route(logits, { over: "expert", topK: 2, preset: "mixtral" });',
    )
  }`;
  t.equal(
    mistake((m) => {
      const { sent, second } = shared(m);
      return { y: combine(sent, second) };
    }),
    `Cannot combine by the routing at ${route2}: the value was dispatched at ${
      at("// sent by first")
    } by the routing at ${route2}. Combine by that one`,
  );
  t.equal(
    mistake((m) => {
      const { first, sent } = shared(m);
      const never = m.param("never", "expert embed");
      const y = add(sent, never);
      void y;
      return { y: combine(sent, first), z: sent };
    }),
    `Cannot dispatch 'token embed': the result never reaches combine. Combine it by the routing at ${route2}`,
  );
  t.equal(
    mistake((m) => ({ y: shared(m).x })),
    `Cannot dispatch 'token embed': the result never reaches combine. Combine it by the routing at ${route2}`,
    "a dispatch whose result is dropped",
  );
  t.equal(
    mistake((m) => {
      const { x, first, second, sent } = shared(m);
      return { y: combine(add(sent, dispatch(x, second)), first) };
    }).replace(/here:\d+/g, "here"),
    "Cannot add values of two routings: one was dispatched at here, the other at here. Combine them first",
  );
  t.equal(
    errorOf(() =>
      trace(model({ ...SIZES, slot: 8 }, (m) => {
        const routing = routed(m as unknown as M);
        return { y: routing.weight };
      }))
    ).message,
    "Cannot call the slots 'slot': the model declares such an axis. Leave it out of 'model', or give 'slot' another name",
  );
  t.end();
});

t.test("trace() rejects a combine without a dispatch", (t) => {
  // Types and rules cannot detect this: a renamed tensor that has the axes of a dispatched value.
  t.match(
    mistake((m) => {
      const renamed = rename(
        m.input("made", "expert token embed"),
        "token",
        "slot",
      );
      return { y: combine(renamed, routed(m)) };
    }),
    /^Cannot combine 'expert slot embed': it was never dispatched\. Dispatch it by the routing at here:\d+$/,
  );
  t.end();
});

t.test("trace() rejects ops that mix rows of dispatched values", (t) => {
  const combined = (
    f: (
      sent: Tensor<"expert slot embed", "f32">,
      m: M,
    ) => Tensor<string, "f32">,
  ) =>
    mistake((m) => {
      const routing = routed(m);
      const sent = dispatch(m.input("x", "token embed"), routing);
      return { y: f(sent, m), z: combine(sent, routing) };
    }).replace(/here:\d+/g, "here");
  const apart = (op: string, axis: string) =>
    `Cannot ${op} over '${axis}': the value was dispatched at here, and its rows must stay apart. Combine it first`;
  t.equal(combined((sent) => sum(sent, "slot")), apart("sum", "slot"));
  t.equal(
    combined((sent) => softmax(sent, "expert")),
    apart("softmax", "expert"),
  );
  t.equal(
    combined((sent) => rename(sent, "slot", "row")),
    apart("rename", "slot"),
  );
  t.equal(
    combined((sent) => transpose(sent, "slot expert embed")),
    apart("transpose", "slot"),
  );
  t.equal(
    combined((sent, m) =>
      dot(sent, m.param("mix", "expert ffn"), "expert") as Tensor<string, "f32">
    ),
    apart("dot", "expert"),
  );
  t.equal(
    mistake((m) => {
      const routing = routed(m);
      const ids = dispatch(m.input("ids", "token", { dtype: "i32" }), routing);
      return { y: embedding(m.param("table", "ffn part"), ids, "ffn") };
    }).replace(/here:\d+/g, "here"),
    "Cannot embed a dispatched value: it was dispatched at here. Combine it first",
  );
  t.end();
});

t.test("trace() checks the names of returned states", (t) => {
  const attend = (m: M) => {
    const position = m.input("position", "token", { dtype: "i32" });
    const key = m.input("key", "token kvHead headDim");
    return attention(m.input("q", "token head headDim"), {
      key,
      value: key,
      keys: m.state("keys", "sequence context kvHead headDim"),
      values: m.state("values", "sequence context kvHead headDim"),
      sequence: position,
      position,
    });
  };
  const good = trace(model(SIZES, (m) => attend(m)));
  t.strictSame(Object.keys(good.outputs), ["y"]);
  t.strictSame(Object.keys(good.states), ["keys", "values"]);
  t.equal(good.states["keys"]?.primitive, "cacheWrite");
  t.match(
    mistake((m) => ({ y: attend(m).y, keys: attend(m).keys })),
    /^Cannot leave state 'values': its next value is not returned, declared at here:\d+\. Return it under this name$/,
  );
  t.equal(
    mistake((m) => {
      const { y, keys, values } = attend(m);
      return { y, keys: values, values: keys };
    }),
    "Cannot return 'keys': it is a state, and the returned value is not its next value. Return the next value from attention",
  );
  t.end();
});

t.test("checkGraph() rejects nodes that violate their rules", (t) => {
  const graph = trace(model(SIZES, (m) => ({
    y: mul(
      rmsNorm(m.input("x", "token embed"), m.param("g", "embed"), "embed"),
      2,
    ),
  })));
  t.doesNotThrow(() => checkGraph(graph));
  const swap = (i: number, change: Partial<Node>): Graph => {
    const nodes = [...graph.nodes];
    nodes[i] = { ...nodes[i]!, ...change } as Node;
    return { ...graph, nodes };
  };
  const norm = graph.nodes.findIndex((node) => node.primitive === "rmsNorm");
  t.match(
    messageOf(() => checkGraph(swap(norm, { axes: ["embed"] }))),
    /^Cannot make a 'rmsNorm' node of f32\[embed\]: its rule says f32\[token embed\]$/,
  );
  t.match(
    messageOf(() =>
      checkGraph({ ...graph, nodes: [...graph.nodes].reverse() })
    ),
    /^Cannot order the graph: a 'map' node precedes one of its operands$/,
  );
  t.match(
    messageOf(() =>
      checkGraph({ ...graph, nodes: graph.nodes.slice(0, norm + 1) })
    ),
    /^Cannot return a 'map' node: it is not in the graph$/,
  );
  t.end();
});

t.test("each layer adds the same number of nodes", (t) => {
  const decoder = (layers: number) =>
    model(SIZES, (m) => {
      let x: Tensor<"token embed", "f32"> = m.input("x", "token embed");
      for (let i = 0; i < layers; i++) {
        for (let j = 0; j < 5; j++) {
          const g = m.param(`${i}.${j}.g`, "embed");
          x = add(x, rmsNorm(mul(x, 0.5), g, "embed"));
        }
        const logits = dot(x, m.param(`${i}.router`, "expert embed"), "embed");
        const routing = route(logits, {
          over: "expert",
          topK: 2,
          preset: "olmoe",
        });
        const up = m.param(`${i}.{expert}.up`, "expert ffn embed");
        const down = m.param(`${i}.{expert}.down`, "expert embed ffn");
        const hidden = dot(dispatch(x, routing), up, "embed");
        x = add(x, combine(dot(hidden, down, "ffn"), routing));
      }
      return { y: x };
    });
  const nodes = (layers: number) => trace(decoder(layers)).nodes.length;
  const [one, two, deep] = [1, 2, 48].map(nodes) as [number, number, number];
  t.ok(two - one > 20);
  t.equal(deep, one + 47 * (two - one));
  t.end();
});
