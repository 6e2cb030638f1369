/**
 * Fuse: decides which nodes have a buffer, and which contractions include the elementwise ops that follow.
 * Postcondition: every node is stored, an alias of a stored node, or part of the kernel of its only user. It creates no
 * kernels.
 */

import { ofCollectives } from "../graph/collectives.ts";
import type { Graph, Node, Primitive } from "../graph/graph.ts";
import type { FusionClass } from "../graph/primitives/definition.ts";
import { definedRows } from "../graph/primitives/mod.ts";
import { endedBy, type EndOptions } from "./ended_by.ts";
import type { ParamLayout } from "./param_layout.ts";
import { shortChains } from "./short_chains.ts";
import { type Expressions, storeWide } from "./store_wide.ts";
import { usersOf } from "../graph/users.ts";

/** Fusion class of each primitive. */
export const FUSION_CLASS: { readonly [P in Primitive]: FusionClass } = {
  input: "source",
  param: "source",
  state: "source",
  map: "inline",
  dot: "kernel",
  reduce: "kernel",
  reduceSum: "kernel",
  ...definedRows("fusion"),
  rope: "inline",
  embedding: "inline",
  scatterAdd: "kernel",
  rename: "view",
  split: "view",
  merge: "view",
  slice: "inline",
  concat: "inline",
  dilate: "inline",
  transpose: "inline",
  cast: "inline",
  topK: "tuple",
  route: "tuple",
  choices: "tuple",
  tupleElement: "element",
  dispatch: "kernel",
  combine: "kernel",
  combineTranspose: "kernel",
  assign: "tuple",
  gatherCounts: "tuple",
  rounds: "tuple",
  nodeCounts: "tuple",
  moveRows: "kernel",
  group: "tuple",
  checkIds: "tuple",
  keyTable: "source",
  gatherKeys: "kernel",
  permute: "kernel",
  allToAll: "kernel",
  received: "view",
  localCombine: "kernel",
  optimizationBarrier: "view",
  ...ofCollectives((_, fusion) => fusion),
  cacheWrite: "kernel",
  attention: "kernel",
  attentionSum: "kernel",
  attentionGrad: "kernel",
};

/** Result of fusion. */
export interface Fusion {
  /** Nodes with a buffer. */
  readonly stored: ReadonlySet<Node>;
  /**
   * Stored elementwise node or cache write -> the nodes whose kernel computes it: contractions (one, or two with the
   * same left operand), a combine or a norm.
   */
  readonly absorbs: ReadonlyMap<Node, readonly Node[]>;
  /** Last node of a chain on short axes -> its other nodes: see `shortChains`. */
  readonly chains: ReadonlyMap<Node, readonly Node[]>;
  /** Nodes computed inside another node's kernel. */
  readonly absorbed: ReadonlySet<Node>;
}

/**
 * Decides storage and fusion. `isMatmul`: whether the tiled kernel supports a dot. `joins`: see `EndOptions`.
 */
export function fuse(
  graph: Graph,
  isMatmul: (node: Node) => boolean,
  { joins, ...known }:
    & Pick<Expressions, "dispatched" | "layouts" | "placed" | "maxBindings">
    & Pick<EndOptions, "joins">,
): Fusion {
  const users = usersOf(graph);
  const named: ReadonlySet<Node> = new Set([
    ...Object.values(graph.outputs),
    ...Object.values(graph.states),
  ]);
  const required = new Set(named);
  const stored = new Set<Node>();
  for (let i = graph.nodes.length - 1; i >= 0; i--) {
    const node = graph.nodes[i]!;
    const kind = FUSION_CLASS[node.primitive];
    if (kind === "view" || kind === "kernel" || kind === "tuple") {
      node.inputs.forEach((input, i) => {
        // A cache write computes its value in its own kernel; norms and the general contraction read a slice in place.
        const inPlace = node.primitive === "cacheWrite"
          ? i === 1
          : (node.primitive === "rmsNorm" && i === 0 ||
            node.primitive === "dot" && !isMatmul(node)) && isPlainSlice(input);
        if (!inPlace) required.add(input);
      });
    }
    if (kind === "kernel") stored.add(node);
    const used = users.get(node) ?? [];
    // Sums over micro-batches are stored as they grow, so that their terms are freed.
    const lasts = node.micro !== undefined &&
      used.some(({ micro }) => micro !== node.micro);
    if (kind === "inline" && (required.has(node) || used.length > 1 || lasts)) {
      stored.add(node);
    }
  }
  const isInline = (node: Node) => FUSION_CLASS[node.primitive] === "inline";
  const single = (node: Node) =>
    users.get(node)?.length === 1 && !named.has(node);
  const apart = new Set<Node>();
  const canEnd = (node: Node) =>
    single(node) && isMatmul(node) && !apart.has(node) &&
    !isTermOfCombine(node, { users, single });
  storeWide({ graph, isInline, canEnd, ...known }, { stored, apart });
  const absorbs = new Map<Node, readonly Node[]>();
  const absorbed = new Set<Node>();
  const absorb = (nodes: readonly Node[]) => {
    for (const node of nodes) {
      absorbed.add(node);
      stored.delete(node);
    }
  };
  const chains = shortChains(graph, {
    ...known,
    isInline,
    users,
    named,
    stored,
  });
  for (const [last, others] of chains) {
    stored.add(last);
    absorb(others);
  }
  const isOwn = (node: Node) => absorbs.has(node) || chains.has(node);
  for (const node of graph.nodes) {
    if (!stored.has(node) || chains.has(node) || !isInline(node)) continue;
    const roots = absorbable(node, stored, single, {
      canEnd,
      layouts: known.layouts,
    });
    if (!roots.length) continue;
    absorbs.set(node, roots);
    absorb(roots);
  }
  for (const node of graph.nodes) {
    if (!stored.has(node) || isOwn(node)) continue;
    const rows = [node, ...node.inputs].some((n) => known.dispatched.has(n));
    const ended = rows ? undefined : endedBy(node, { single, isMatmul, joins });
    if (!ended) continue;
    // The kernel of the root may already store nodes between: then it writes the last node instead.
    const { root, between } = ended;
    const own = between.filter(isOwn);
    const isPart = (inner: Node) =>
      absorbs.get(inner)?.every((of) => of === root);
    if (!own.every(isPart)) continue;
    for (const inner of own) absorbs.delete(inner);
    absorbs.set(node, [root]);
    absorb([root, ...between]);
  }
  return { stored, absorbs, chains, absorbed };
}

/** Whether a node is a slice of a stored value. */
function isPlainSlice(node: Node): boolean {
  return node.primitive === "slice" &&
    FUSION_CLASS[node.inputs[0]!.primitive] !== "inline";
}

/** The contractions or combine at the leaves of `node`'s expression that have exactly its axes and no other user. */
function absorbable(
  node: Node,
  stored: ReadonlySet<Node>,
  single: (node: Node) => boolean,
  { canEnd, layouts }: {
    readonly canEnd: (node: Node) => boolean;
    readonly layouts: ReadonlyMap<Node, ParamLayout>;
  },
): Node[] {
  const dots: Node[] = [];
  const combines: Node[] = [];
  let terms = 0;
  const visit = (inner: Node): void => {
    for (const input of inner.inputs) {
      if (input.axes.join() !== node.axes.join()) continue;
      const elementwise = input.primitive === "map" ||
        input.primitive === "cast";
      if (elementwise && !stored.has(input)) visit(input);
      else if (single(input) && input.primitive === "combine") {
        combines.push(input);
      } else if (input.primitive === "dot" && canEnd(input)) dots.push(input);
      else if (isTerm(input)) terms++;
    }
  };
  if (node.primitive === "map" || node.primitive === "cast") visit(node);
  if (!dots.length) return combines.slice(0, 1);
  const [first] = dots;
  const partner = dots.slice(1).find((dot) =>
    dot.inputs[0] === first!.inputs[0] && sameContraction(dot, first!) &&
    (["filed", "q8"] as const).every((what) =>
      layouts.get(dot.inputs[1]!)?.[what] ===
        layouts.get(first!.inputs[1]!)?.[what]
    )
  );
  const roots = partner ? [first!, partner] : [first!];
  // A kernel that reads terms stores only what is linear in them; a sum over a sharded axis is a term of its own.
  const begins = isTerm(first!) && !first!.inputs.some(isTerm);
  const readsTerms = terms > 0 || dots.length > roots.length;
  return begins && readsTerms ? [] : roots;
}

/**
 * Whether a contraction and a combine are in one expression of elementwise nodes with their axes, as shared and routed
 * experts are. The combine computes the expression, so that the contraction does not wait for the exchange.
 */
function isTermOfCombine(
  node: Node,
  { users, single }: {
    readonly users: ReadonlyMap<Node, readonly Node[]>;
    readonly single: (node: Node) => boolean;
  },
): boolean {
  const axes = node.axes.join();
  const continues = ({ primitive, axes: own }: Node) =>
    (primitive === "map" || primitive === "cast") && own.join() === axes;
  let last = node;
  for (let [user] = users.get(node)!; user && continues(user);) {
    last = user;
    user = single(user) ? users.get(user)![0] : undefined;
  }
  const combines = (inner: Node): boolean =>
    inner.inputs.some((input) =>
      input.axes.join() === axes && !isTerm(input) &&
      (input.primitive === "combine" && single(input) ||
        continues(input) && single(input) && combines(input))
    );
  return last !== node && !isTerm(node) && combines(last);
}

/** Whether ranks have terms of the value. */
function isTerm({ sharding }: Node): boolean {
  return (sharding?.unreduced.length ?? 0) > 0;
}

function sameContraction(a: Node, b: Node): boolean {
  return a.primitive === "dot" && b.primitive === "dot" &&
    a.params.over.join() === b.params.over.join() &&
    a.params.segments === b.params.segments &&
    a.inputs[1]!.axes.join() === b.inputs[1]!.axes.join();
}
