/**
 * Chains of elementwise ops and sums over short axes, such as the Sinkhorn iterations of hyper-connections: one kernel
 * computes all of them, with one invocation for each index of the other axes.
 */

import type { Graph, Node } from "../graph/graph.ts";
import { isUneven } from "../sharding/lengths.ts";
import type { Placed } from "../sharding/placed.ts";
import type { Expressions } from "./store_wide.ts";

/** Maximum length of a short axis, and maximum number of values of a chain for one index of the other axes. */
const SHORT = 8, MAX_VALUES = 4096;

/** Maximum number of stored values that a chain reads: the result and lengths need bindings too. */
const MAX_READ = 4;

/** Facts about the nodes of chains. */
export interface ChainOptions
  extends Pick<Expressions, "dispatched" | "layouts" | "placed" | "isInline"> {
  readonly users: ReadonlyMap<Node, readonly Node[]>;
  /** Outputs and new states. */
  readonly named: ReadonlySet<Node>;
  readonly stored: ReadonlySet<Node>;
}

/** The axes of a node that invocations loop over. */
export function shortAxes(placed: Placed, { axes }: Node): string[] {
  return axes.filter((axis) => isShort(placed, axis));
}

/** The other axes of a node. */
export function outerAxes(placed: Placed, { axes }: Node): string[] {
  return axes.filter((axis) => !isShort(placed, axis));
}

function isShort(placed: Placed, axis: string): boolean {
  const { dynamic, size } = placed.axes[axis]!;
  return !dynamic && size <= SHORT && !isUneven(placed, placed.axes[axis]);
}

/** The chains by their last node, which is then stored: the other nodes, in order. */
export function shortChains(
  { nodes }: Graph,
  o: ChainOptions,
): Map<Node, readonly Node[]> {
  const chains = new Map<Node, readonly Node[]>();
  const taken = new Set<Node>();
  for (let i = nodes.length - 1; i >= 0; i--) {
    const last = nodes[i]!;
    if (taken.has(last) || !canBeIn(last, o)) continue;
    const chain = chainOf(last, o);
    if (!isWorthwhile(chain, o)) continue;
    chain.forEach((node) => taken.add(node));
    const others = new Set(chain);
    others.delete(last);
    chains.set(last, nodes.slice(0, i).filter((node) => others.has(node)));
  }
  return chains;
}

/** Whether a kernel of a chain can compute a node. */
function canBeIn(node: Node, { dispatched, placed }: ChainOptions): boolean {
  if (node.dtype !== "f32" || node.sharding?.unreduced.length) return false;
  if ([node, ...node.inputs].some((n) => dispatched.has(n))) return false;
  if (node.primitive === "reduce") {
    return node.params.kind === "sum" && isShort(placed, node.params.over);
  }
  // The kernel of a contraction or a combine computes what follows.
  return node.primitive === "map" &&
    !node.inputs.some(({ primitive }) =>
      primitive === "dot" || primitive === "combine" || primitive === "rmsNorm"
    );
}

/** A last node, and the nodes whose users are all in the chain. */
function chainOf(last: Node, o: ChainOptions): Set<Node> {
  const chain = new Set([last]);
  const outerOf = (node: Node) => outerAxes(o.placed, node).join();
  const outer = outerOf(last);
  const addInputs = (node: Node): void => {
    for (const input of node.inputs) {
      const fits = canBeIn(input, o) && !chain.has(input) &&
        !o.named.has(input) &&
        o.users.get(input)!.every((user) => chain.has(user)) &&
        outerOf(input) === outer && input.block === last.block &&
        input.phase === last.phase && input.micro === last.micro;
      if (!fits) continue;
      chain.add(input);
      addInputs(input);
    }
  };
  addInputs(last);
  return chain;
}

/** Whether one kernel can compute a chain, in place of at least two. */
function isWorthwhile(chain: ReadonlySet<Node>, o: ChainOptions): boolean {
  const all = [...chain];
  const read = new Set<Node>();
  const addRead = (node: Node): void => {
    for (const input of node.inputs) {
      if (chain.has(input)) continue;
      if (o.isInline(input) && !o.stored.has(input)) addRead(input);
      else read.add(input);
    }
  };
  all.forEach(addRead);
  const values = all.reduce(
    (sum, node) =>
      sum + shortAxes(o.placed, node)
        .reduce((n, axis) => n * o.placed.axes[axis]!.size, 1),
    0,
  );
  return all.some(({ primitive }) => primitive === "reduce") &&
    all.filter((node) => o.stored.has(node)).length > 1 &&
    values <= MAX_VALUES && read.size <= MAX_READ &&
    ![...read].some((node) => o.layouts.has(node));
}
