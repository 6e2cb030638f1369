/** Text of a layer after `shard` on several meshes, as quoted in spec/sharding.md. */

import { readFileSync } from "node:fs";
import t from "tap";
import type { Graph, Node } from "../compiler/graph/graph.ts";
import { formatSharding, REPLICATED } from "../compiler/graph/sharding.ts";
import { type Dispatcher, DISPATCHER_NAMES } from "../spec/strategies.ts";
import {
  add,
  combine,
  dispatch,
  dot,
  embedding,
  model,
  mul,
  route,
  trace,
  upTo,
} from "../compiler/mod.ts";
import { axisFacts, readPlacement, shard } from "../compiler/sharding/mod.ts";

/** One line per node: `%2 = dot %0 %1 over head : token/dp embed {unreduced tp}`. */
function formatSharded({ nodes }: Pick<Graph, "nodes">): string {
  const numbers = new Map(nodes.map((node, i) => [node, i]));
  const lines = nodes.map((node) => {
    const words = [
      `%${numbers.get(node)} = ${node.primitive}`,
      ...node.inputs.map((input) => `%${numbers.get(input)}`),
      ...aboutOf(node),
    ];
    const type = formatSharding(node.axes, node.sharding ?? REPLICATED);
    return `${words.join(" ")} : ${type}`;
  });
  return `${lines.join("\n")}\n`;
}

/** The name of a leaf, or the axes of an op. */
function aboutOf({ params }: Node): string[] {
  if ("name" in params) return [params.name];
  return "over" in params ? [`over ${[params.over].flat().join(" ")}`] : [];
}

/** An embedding, a feed-forward block and experts. */
const layer = model(
  { token: upTo(64), vocab: 32, embed: 64, ffn: 128, expert: 8 },
  (m) => {
    const ids = m.input("ids", "token", { dtype: "i32" });
    const x = embedding(m.param("table", "vocab embed"), ids, "vocab");
    const up = dot(x, m.param("up", "ffn embed"), "embed");
    const h = add(x, dot(mul(up, up), m.param("down", "embed ffn"), "ffn"));
    const logits = dot(h, m.param("router", "expert embed"), "embed");
    const routing = route(logits, {
      over: "expert",
      topK: 2,
      preset: "mixtral",
    });
    const w = m.param("w", "expert embed");
    return { y: add(h, combine(mul(dispatch(h, routing), w), routing)) };
  },
);

function textOn(
  mesh: { readonly [axis: string]: number },
  dispatcher?: Dispatcher,
): string {
  const graph = trace(layer);
  const axes = Object.entries(mesh).map(([name, size]) => ({ name, size }));
  const placed = readPlacement(graph, axes);
  const facts = axisFacts(graph, placed.mesh, placed.requests);
  return formatSharded(shard(facts, { shardsState: () => false, dispatcher }));
}

const page = readFileSync(
  new URL("../spec/sharding.md", import.meta.url),
  "utf8",
);

for (
  const [title, mesh] of [
    ["one rank", {}],
    ["tp=2", { tp: 2 }],
    ["ep=2", { ep: 2 }],
    ["tp=2,ep=2", { tp: 2, ep: 2 }],
  ] as const
) {
  t.test(`a layer on ${title}`, (t) => {
    const quoted = `Mesh ${title}:\n\n\`\`\`\n${textOn(mesh)}\`\`\`\n`;
    t.ok(page.includes(quoted), "spec/sharding.md has this text", { quoted });
    t.end();
  });
}

for (const name of DISPATCHER_NAMES) {
  t.test(`the page has dispatcher ${name}`, (t) => {
    t.match(page, new RegExp(`^\\| \`${name}\` +\\|`, "m"));
    // The page quotes the nodes from 'route' on.
    const block = textOn({ dp: 2, ep: 2 }, name).split(
      /^(?=%\d+ = route )/m,
    )[1]!;
    const quoted = `Mesh dp=2,ep=2, \`${name}\`:\n\n\`\`\`\n${block}\`\`\`\n`;
    t.ok(page.includes(quoted), "with its text", { quoted });
    t.end();
  });
}
