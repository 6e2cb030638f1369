/** Which axes a node needs whole, by primitive, and what it is on axes that have been made whole. */

import type { PlanAxis } from "../../spec/plan.ts";
import type {
  Graph,
  Node,
  NodeOf,
  Primitive,
  PrimitiveParams,
} from "../graph/graph.ts";
import { looksAtGroup, routeOperand } from "../graph/routing.ts";

/** Where axes lie. */
type Axes = { readonly [name: string]: PlanAxis };

interface Rule<P extends Primitive> {
  /** Axes that no rank may have only a part of. */
  readonly needs: (node: NodeOf<P>, axes: Axes) => readonly string[];
  /** The parameters where `whole` gives axes their new names; absent: nothing is gathered for it. */
  readonly on?: (
    params: PrimitiveParams[P],
    whole: (axis: string) => string,
  ) => PrimitiveParams[P];
}

/** Works on any part of its axes. */
const ANY = { needs: () => [] };

/** Primitives with one axis `over`. */
const OVER = {
  needs: (
    { params }: { readonly params: { readonly over: string } },
  ) => [params.over],
  on: <T extends { readonly over: string }>(
    params: T,
    whole: (axis: string) => string,
  ): T => ({ ...params, over: whole(params.over) }),
};

/** The rules. A primitive without one does not compile. */
export const WHOLE: { readonly [P in Primitive]: Rule<P> } = {
  input: ANY,
  param: { needs: (node) => node.axes },
  state: { needs: (node) => node.axes },
  map: ANY,
  dot: {
    needs: ({ params }) => params.over,
    on: ({ over }, whole) => ({ over: over.map(whole) }),
  },
  reduce: OVER,
  // Sums of what ranks have are parts of a sum: see partial.ts.
  accumulate: ANY,
  softmax: OVER,
  logSumExp: OVER,
  rmsNorm: OVER,
  rope: { needs: OVER.needs },
  embedding: { needs: rowsElsewhere },
  // As `accumulate`, unless it says otherwise.
  scatter: {
    needs: ({ params: { over, whole }, inputs: [rows], axes }) => [
      over,
      ...whole ? rows!.axes.filter((axis) => !axes.includes(axis)) : [],
    ],
    on: OVER.on,
  },
  rename: {
    needs: ({ params }) => [params.from],
    on: ({ from, to }, whole) => ({ from: whole(from), to }),
  },
  split: {
    needs: ({ params }) => [params.axis],
    on: (params, whole) => ({ ...params, axis: whole(params.axis) }),
  },
  merge: {
    needs: ({ params }) => params.axes,
    on: ({ axes, to }, whole) => ({ axes: axes.map(whole), to }),
  },
  slice: {
    needs: ({ params }) => [params.axis],
    on: (params, whole) => ({ ...params, axis: whole(params.axis) }),
  },
  concat: {
    needs: ({ params }) => params.axes,
    on: ({ axes, to }, whole) => ({ axes: axes.map(whole), to }),
  },
  spread: {
    needs: ({ params }) => [params.axis],
    on: (params, whole) => ({ ...params, axis: whole(params.axis) }),
  },
  transpose: ANY,
  cast: ANY,
  topK: OVER,
  route: {
    needs: routingGroup,
    on: (params, whole) => ({ ...params, tokens: params.tokens.map(whole) }),
  },
  choices: ANY,
  part: ANY,
  dispatch: ANY,
  combine: ANY,
  collect: ANY,
  gather: ANY,
  take: ANY,
  again: ANY,
  allReduce: ANY,
  reduceScatter: ANY,
  allGather: ANY,
  cacheWrite: ANY,
  attention: ANY,
  attentionSum: ANY,
  attentionGrad: ANY,
};

/** Axes of a node of any primitive that no rank may have only a part of. */
export function wholeAxes(node: Node, axes: Axes): readonly string[] {
  return (WHOLE[node.primitive] as Rule<Primitive>).needs(node as never, axes);
}

/** Rows of a placed axis can be picked where the ids were dealt to the ranks that have them. */
function rowsElsewhere(
  node: NodeOf<"embedding">,
  axes: Axes,
): readonly string[] {
  const { over } = node.params;
  const ids = node.inputs[1]!;
  const { deal } = axes[ids.axes[0] ?? ""] ?? {};
  const here = deal?.by === "items" && deal.of === over &&
    ids.primitive === "input" && deal.input === ids.params.name;
  return here ? [] : [over];
}

/** Rules that look at a routing group need it whole: all axes of tokens but a leading one, unless its tokens are dealt together. */
function routingGroup(
  node: NodeOf<"route">,
  axes: Axes,
): readonly string[] {
  const { rule, tokens, leadingGroup } = node.params;
  if (!looksAtGroup(rule)) return [];
  const group = routeOperand(node, "group");
  return tokens.filter((axis) => {
    const { deal } = axes[axis] ?? {};
    const together = group?.primitive === "input" && deal?.by === "sequence" &&
      deal.input === group.params.name;
    return axis !== leadingGroup && !together;
  });
}

/** The input by whose values the items of an axis are dealt to ranks: those of a sequence, else those of a routing group. */
export function dealInput(graph: Graph, axis: string): string | undefined {
  const sequences = graph.nodes.map((node) =>
    node.primitive === "attention"
      ? node.inputs[3]
      : node.primitive === "cacheWrite"
      ? node.inputs[2]
      : undefined
  );
  const groups = graph.nodes.map((node) =>
    node.primitive === "route" && looksAtGroup(node.params.rule)
      ? routeOperand(node, "group")
      : undefined
  );
  for (const node of [...sequences, ...groups]) {
    if (node?.primitive === "input" && node.axes.join() === axis) {
      return node.params.name;
    }
  }
  return undefined;
}
