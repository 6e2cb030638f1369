// The data flow of a layer: producers and consumers of values, with axes, shardings and bytes; and its layout.
// rotates with: view/

import t from "tap";
import { planSummary } from "../engine/mod.ts";
import { parsePlan } from "../spec/mod.ts";
import { sizeText } from "../spec/size_text.ts";
import { type Flow, flowOf } from "../view/flow.ts";
import { flowPicture } from "../view/pictures/flow.ts";
import { viewPlan } from "../view/plan_view.ts";
import type { Rect } from "../view/pictures/figure.ts";
import { trafficOf } from "../view/traffic.ts";
import { switchyard } from "./helpers/cli.ts";

/** Data flow of a section of a plan. */
async function flow(
  argv: readonly string[],
  options: { readonly weights: boolean; readonly tables: boolean },
) {
  const planned = await switchyard(["plan", ...argv, "--json", "--full"]);
  t.equal(planned.code, 0, planned.err);
  const plan = parsePlan(planned.out);
  const view = viewPlan(plan, planSummary(plan));
  const [program] = view.programs;
  const section =
    program!.sections.findLast(({ layers }) => layers.length > 0) ??
      program!.sections[0]!;
  const { start, length } = section;
  const traffic = trafficOf(view, program!, section);
  const graph = flowOf(view, program!, {
    ...options,
    traffic,
    start,
    end: start + length,
  });
  const figure = flowPicture(graph, { program: program!, title: "a layer" });
  return { graph, figure, traffic };
}

/** One line per step and value. */
function textOf({ nodes, edges }: Flow): string[] {
  const nameOf = new Map(
    nodes.map((node) => [
      node.key,
      node.kind === "step" ? `${node.index}` : node.name,
    ]),
  );
  return nodes.map((node) => {
    if (node.kind === "step") {
      const uses = node.uses.map(({ name, type }) => `${name} ${type}`);
      return [`${node.index}. ${node.name}`, node.how, ...uses].join("; ");
    }
    const ends = (of: "from" | "to", other: "from" | "to") =>
      edges.filter((edge) => edge[of] === node.key)
        .map((edge) => nameOf.get(edge[other])).join(" ");
    return `${node.name} ${node.type}: ${ends("to", "from")} -> ${
      ends("from", "to")
    }`;
  });
}

const LAYER = ["examples/layer.ts", "--mesh", "ep=4"];

t.test("the values of a layer, between its steps", async (t) => {
  const { graph, traffic } = await flow(LAYER, {
    weights: true,
    tables: false,
  });
  t.strictSame(textOf(graph), [
    "0. dot over embed; matmul_512x8; router f32[embed:512 expert:8]",
    "1. route; router_8",
    "2. dispatch: count; assign_8",
    "3. dispatch: permute; permute_512",
    "4. dispatch: exchange counts; all-gather over ep, 96 bytes",
    "5. dispatch: exchange; all-to-all over ep, 3.0 MiB",
    "6. dispatch: regroup; regroup_8",
    "7. map; grouped_matmul_pair_512x1024; experts.{expert}.gate f32[expert/ep:2 embed:512 ffn:1024]; experts.{expert}.up f32[expert/ep:2 embed:512 ffn:1024]",
    "8. dot over ffn; grouped_matmul_1024x512; experts.{expert}.down f32[expert/ep:2 ffn:1024 embed:512]",
    "9. combine: exchange; all-to-all over ep, 3.0 MiB",
    "10. combine: combine; combine_512",
    "x f32[token/ep<=4096 embed:512]:  -> 0 3 10",
    "dot f32[token/ep<=4096 expert:8]: 0 -> 1",
    "weight f32[token/ep<=4096 choice:2]: 1 -> 10",
    "sent f32[expert/ep slot<=2048 embed:512]: 3 -> 5",
    "received f32[expert/ep slot<=8192 embed:512]: 5 -> 7",
    "map f32[expert/ep slot<=8192 ffn:1024]: 7 -> 8",
    "dot.2 f32[expert/ep slot<=8192 embed:512]: 8 -> 9",
    "returned f32[expert/ep slot<=2048 embed:512]: 9 -> 10",
    "y f32[token/ep<=4096 embed:512]: 10 -> ",
  ]);
  for (const { at, perRank } of traffic) {
    const node = graph.nodes.find(({ key }) => key === `step ${at.index}`)!;
    t.match(node, { how: RegExp(`, ${sizeText(Math.round(perRank))}$`) });
  }
  // Edges through tables connect the steps of a dispatch; on request, tables are nodes.
  t.ok(
    graph.edges.some(({ from, to, through }) =>
      from === "step 2" && to === "step 3" && through!.length > 0
    ),
  );
  const all = await flow(LAYER, { weights: false, tables: true });
  t.ok(all.graph.edges.every(({ through }) => through === undefined));
  t.ok(all.graph.nodes.length > graph.nodes.length);
});

t.test("a cache that is written and then read is between the steps", async (t) => {
  const { graph } = await flow(["examples/demo-lm", "--mesh", "ep=2"], {
    weights: true,
    tables: false,
  });
  const keys = textOf(graph).find((line) => /^self_attn\.keys/.test(line));
  t.match(keys, /^self_attn\.keys f32\[.*\]: \d+ -> \d+$/);
});

t.test("boxes of a layout are disjoint and within the picture", async (t) => {
  for (
    const argv of [LAYER, ["examples/demo-lm", "--mesh", "ep=2", "--train"]]
  ) {
    const { figure } = await flow(argv, { weights: true, tables: true });
    const boxes = figure.shapes.filter((shape): shape is Rect =>
      shape.kind === "rect" && shape.border !== undefined
    );
    t.ok(boxes.length > 10);
    const [width, height] = figure.size;
    for (const [i, { at: [x, y], size: [w, h] }] of boxes.entries()) {
      t.ok(x >= 0 && y >= 0 && x + w <= width && y + h <= height);
      for (const { at: [a, b], size: [c, d] } of boxes.slice(i + 1)) {
        t.ok(x + w <= a || a + c <= x || y + h <= b || b + d <= y);
      }
    }
  }
});
