/** Adds two outputs per router with a capacity: its choices and its dropped choices. */

import { expr } from "../../../spec/kernel/text/resolve.ts";
import type { Graph } from "../graph.ts";
import { builderContext, NodeBuilder } from "../gradients/node_builder.ts";
import { inOrder } from "../trace.ts";

/** Names of the counts: `chosen.0`, `dropped.0` of the first routing with a capacity. */
export const DROPPED = { chosen: "chosen.", dropped: "dropped." };

/** The graph with `chosen.N` and `dropped.N`, f32 counts over all tokens, for each routing that can drop. */
export function countDropped(graph: Graph): Graph {
  const context = builderContext(graph.axes, graph.nodes);
  const outputs = { ...graph.outputs };
  const dropping = graph.nodes.filter((node) =>
    node.primitive === "route" && node.params.rule.capacity !== undefined &&
    node.params.rule.capacity.slots !== "largest"
  );
  for (const [n, route] of dropping.entries()) {
    const b = new NodeBuilder(context, route);
    const count = (field: "chosen" | "kept") =>
      b.sumTo(b.cast(b.make("tupleElement", [route], { field }), "f32"), []);
    outputs[`${DROPPED.chosen}${n}`] = count("chosen");
    outputs[`${DROPPED.dropped}${n}`] = b.map(
      (chosen, kept) => expr`${chosen} - ${kept}`,
      count("chosen"),
      count("kept"),
    );
  }
  const nodes = inOrder([
    ...Object.values(outputs),
    ...Object.values(graph.states),
  ]);
  return { ...graph, nodes, outputs };
}
