/**
 * Facts about the parameters of a model, independent of placement: element counts, active elements per token, and
 * matrix shapes.
 */

import type { DType } from "../../spec/dtype.ts";
import type { MatrixShape } from "../../spec/weights/encoding.ts";
import { type Graph, isRouting, type Node, type NodeOf } from "./graph.ts";
import { selectionBiases } from "./selection_bias.ts";
import { tensorOf } from "./stored.ts";
import { dispatchedNodes } from "./routing/dispatched_nodes.ts";
import { usersOf } from "./users.ts";

/** One parameter of a model. */
export interface ParamFacts {
  readonly name: string;
  /** The source tensor; for a stacked parameter, the first. */
  readonly tensor: string;
  readonly dtype: DType;
  /** Axes of the parameter, in the order of the model. */
  readonly axes: readonly string[];
  /** Elements of all source tensors together. */
  readonly elements: number;
  /** Elements active for one token: those of its chosen experts, and one row of a table that is only looked up. */
  readonly active: number;
  /** Use of the parameter. A table that is also contracted is a matrix. */
  readonly use: "matrix" | "table" | "other";
  /** The matrices in files and their number. Vectors are one row. */
  readonly matrix: MatrixShape & { readonly count: number };
  /** Expert axis of the parameter. */
  readonly expert?: string;
  /** Whether it is the selection bias of a router, which is f32 also in 16-bit files. */
  readonly selection: boolean;
  /** Whether it is contracted to the logits of a router. */
  readonly router: boolean;
}

/** The parameters of a graph, in its order. */
export function paramFacts(graph: Graph): ParamFacts[] {
  const users = usersOf(graph);
  const dispatched = dispatchedNodes(graph);
  const biases = selectionBiases(graph.nodes);
  const routers = routerParams(graph);
  return graph.nodes.flatMap((node) => {
    if (node.primitive !== "param") return [];
    const sizes = sizesOf(graph, node);
    const elements = sizes.reduce((n, size) => n * size, 1);
    const used = users.get(node) ?? [];
    const route = used.map((user) => dispatched.get(user)).find(isRouting);
    const expert = route?.params.expert;
    const dots = used.flatMap((user) => dotsOf(user, users));
    const tables = used.filter((user): user is NodeOf<"embedding"> =>
      user.primitive === "embedding" && user.inputs[0] === node
    );
    const use = dots.length > 0
      ? "matrix"
      : tables.length > 0
      ? "table"
      : "other";
    const share = expert !== undefined && node.axes.includes(expert)
      ? route!.params.rule.topK / sizes[node.axes.indexOf(expert)]!
      : use === "table"
      ? 1 / sizes[node.axes.indexOf(tables[0]!.params.over)]!
      : 1;
    return [{
      name: node.params.name,
      tensor: tensorOf(node),
      dtype: node.dtype,
      axes: node.axes,
      elements,
      active: Math.round(elements * share),
      use,
      matrix: matrixOf(node, sizes, used),
      ...expert === undefined ? {} : { expert },
      selection: biases.has(node),
      router: routers.has(node),
    }];
  });
}

function sizesOf(graph: Graph, node: Node): number[] {
  return node.axes.map((axis) => graph.axes[axis]!.size);
}

/** The parameters whose contractions become the logits of a routing. */
export function routerParams({ nodes }: Graph): ReadonlySet<Node> {
  const found = new Set<Node>();
  const seen = new Set<Node>();
  const waiting = nodes.flatMap((node) =>
    node.primitive === "route" ? [node.inputs[0]!] : []
  );
  for (let node = waiting.pop(); node; node = waiting.pop()) {
    if (seen.has(node)) continue;
    seen.add(node);
    if (node.primitive === "param") found.add(node);
    // A contraction with a parameter ends the logits.
    waiting.push(...node.primitive === "dot" ? [node.inputs[1]!] : node.inputs);
  }
  return found;
}

/** The contractions of a parameter, directly or through views. */
function dotsOf(
  user: Node,
  users: ReadonlyMap<Node, readonly Node[]>,
): NodeOf<"dot">[] {
  if (user.primitive === "dot") return [user];
  const view = user.primitive === "split" || user.primitive === "merge" ||
    user.primitive === "slice" || user.primitive === "rename";
  return view
    ? (users.get(user) ?? []).flatMap((next) => dotsOf(next, users))
    : [];
}

/** Contracted axes are columns; without a contraction of the parameter itself, the last axis is. */
function matrixOf(
  node: NodeOf<"param">,
  sizes: readonly number[],
  used: readonly Node[],
): ParamFacts["matrix"] {
  const dot = used.find((user): user is NodeOf<"dot"> =>
    user.primitive === "dot" && user.inputs[1] === node
  );
  const over = dot?.params.over ?? node.axes.slice(-1);
  const batch = dot
    ? node.axes.filter((axis) =>
      dot.inputs[0]!.axes.includes(axis) && !over.includes(axis)
    )
    : node.axes.slice(0, -2);
  const size = (axes: readonly string[]) =>
    axes.reduce((n, axis) => n * sizes[node.axes.indexOf(axis)]!, 1);
  return {
    count: size(batch),
    columns: size(over),
    rows: size(
      node.axes.filter((axis) => !over.includes(axis) && !batch.includes(axis)),
    ),
  };
}
