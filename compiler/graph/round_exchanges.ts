/** Rounds the rows of dispatch and combine to their format, before sharding, so that bits do not depend on the mesh. */

import { ModelError } from "../../spec/errors.ts";
import { type Wire, type WireFormat, WIRES } from "../../spec/wire.ts";
import { isCollective } from "./collectives.ts";
import {
  type Graph,
  isWeighted,
  type Node,
  type NodeOf,
  originOf,
} from "./graph.ts";
import { mapNodes } from "./map_nodes.ts";

/**
 * The graph with a `round` before every dispatch and combine of f32 rows. Rows that are weighted before the exchange
 * are not rounded. Throws ModelError for a training step.
 */
export function roundExchanges(graph: Graph, wire: Wire): Graph {
  const { dispatch, combine } = WIRES[wire];
  if (!dispatch || !combine) return graph;
  const nodes: Node[] = [];
  const rounded = mapNodes(graph, (node) => {
    const format = formatOf(node, { dispatch, combine });
    if (format && node.phase !== undefined) {
      throw new ModelError(
        `Cannot train with wire '${wire}': gradients are exchanged in f32. Use wire 'f32'`,
        node.span,
      );
    }
    const x = format && roundedRows(node, format);
    const now = x ? { ...node, inputs: [x, node.inputs[1]!] } as Node : node;
    nodes.push(...x ? [x] : [], now);
    return now;
  });
  return { ...rounded, nodes };
}

/** The format of the rows that a node exchanges, if they are rounded. */
function formatOf(
  node: Node,
  formats: { readonly [P in "dispatch" | "combine"]: WireFormat },
): WireFormat | undefined {
  const { primitive } = node;
  if (primitive !== "dispatch" && primitive !== "combine") return undefined;
  return primitive === "dispatch" && isWeighted(node) && !node.phase
    ? undefined
    : formats[primitive];
}

/** The rounded operand of a dispatch or combine. Undefined if it does not consist of rows of f32. */
function roundedRows(node: Node, format: WireFormat): Node | undefined {
  const [x] = node.inputs as [Node];
  const { axes, dtype } = x;
  // The axes of tokens, or the expert and slot axes, identify rows.
  const row = node.primitive === "dispatch"
    ? axes.filter((axis) => node.axes.includes(axis))
    : axes.slice(2);
  const over = row.at(-1);
  if (dtype !== "f32" || over === undefined) return undefined;
  return {
    primitive: "round",
    inputs: [x],
    params: { over, format },
    axes,
    dtype,
    ...originOf(node),
  } as Node;
}

/** The graph with every `round` after the collectives between it and its dispatch or combine, so that it is last. */
export function roundLast(graph: Graph): Graph {
  if (!graph.nodes.some(({ primitive }) => primitive === "round")) return graph;
  const nodes: Node[] = [];
  const moved = mapNodes(graph, (node) => {
    const [x] = node.inputs;
    if (x?.primitive !== "round" || !isCollective(node.primitive)) {
      nodes.push(node);
      return node;
    }
    const collective = { ...node, inputs: x.inputs } as Node;
    const rounded = { ...x, ...shardedAs(node), inputs: [collective] } as Node;
    nodes.push(collective, rounded);
    return rounded;
  });
  return { ...moved, nodes };
}

function shardedAs({ axes, sharding }: Node): Pick<Node, "axes" | "sharding"> {
  return { axes, ...sharding ? { sharding } : {} };
}

/** The operand of a `round`; other nodes unchanged. */
export function unrounded(node: Node): Node {
  return node.primitive === "round" ? node.inputs[0]! : node;
}

/** The same rounding of another value. `encoded`: stored in the format of the exchange. */
export function roundedAs(
  { params, ...round }: NodeOf<"round">,
  value: Node,
  encoded: boolean,
): Node {
  const { axes, dtype, chunk } = value;
  return {
    ...round,
    inputs: [value],
    params: encoded ? { ...params, encoded } : params,
    axes,
    dtype,
    ...chunk === undefined ? {} : { chunk },
  } as Node;
}
