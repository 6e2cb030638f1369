/** The values between a router and its combine, where experts are two matmuls and nothing else reads their rows. */

import type { Graph, Node, NodeOf } from "../../../graph/graph.ts";
import { usersOf } from "../../../graph/users.ts";
import { isMatmul } from "../matmul/is_matmul.ts";
import type { Lowering, PendingRouter, RouteResults } from "../lowering.ts";
import type { GroupedRows } from "./group.ts";

/** A stored value and the dots in its kernel. */
export interface ExpertMatmul {
  readonly node: Node;
  readonly dots: readonly NodeOf<"dot">[];
}

/** Experts that are two matmuls. */
export interface ExpertChain {
  readonly router: PendingRouter;
  readonly choices: RouteResults;
  readonly grouped: GroupedRows;
  /** The tokens, without a dispatch. */
  readonly tokens: Node;
  readonly first: ExpertMatmul;
  /** The left operand of the last matmul: that of the first, or a map of slices of it. */
  readonly hidden: Node;
  /** The slices of `first` with every other column: even ones, then odd ones. Absent: `hidden` is the first. */
  readonly slices?: readonly [Node, Node];
  readonly last: ExpertMatmul;
}

/** The experts of a combine, if their rows stay on this rank in place. */
export function expertChain(
  lowering: Lowering,
  combine: NodeOf<"combine">,
): ExpertChain | undefined {
  const { model: { graph, dispatched, fusion }, values } = lowering;
  const [returned, assign] = combine.inputs as [Node, Node];
  if (assign.primitive !== "assign" || !assign.params.local) return;
  const route = assign.inputs[0]!;
  const choices = values.results.get(route);
  const router = choices?.pending;
  const group = dispatched.get(returned);
  if (!router || group?.primitive !== "group") return;
  // Choices may be outputs.
  const isUnused = (node: Node) =>
    node.primitive === "tupleElement" && !usersOf(graph).has(node);
  const routed = usersOf(graph).get(route)!
    .every((user) => user === assign || isUnused(user));
  if (!routed) return;
  const known = usersOf(graph).get(assign)!
    .every((user) => user === combine || user === group as Node);
  const last = matmulAt(lowering, returned);
  const hidden = last?.dots[0]?.inputs[0];
  if (!known || last?.dots.length !== 1 || !hidden) return;
  const slices = matmulAt(lowering, hidden)
    ? undefined
    : slicesOf(lowering, hidden);
  if (slices === "others") return;
  const first = matmulAt(lowering, slices?.[0].inputs[0] ?? hidden);
  const received = first?.dots[0]?.inputs[0];
  if (received?.primitive !== "received" || !received.params.inPlace) return;
  const ofGroup = graph.nodes.filter((node) => dispatched.get(node) === group);
  const isKnown = (node: Node) =>
    node === received || node === hidden || node === first!.node ||
    node === returned ||
    !fusion.stored.has(node) && node.primitive !== "received";
  const chained = ofGroup.every(isKnown) &&
    isOnlyUsedBy(graph, received, first!.dots) &&
    isOnlyUsedBy(graph, hidden, last.dots) &&
    isOnlyUsedBy(graph, returned, [combine]) &&
    !isNamed(graph, [first!.node, hidden, returned]);
  if (!chained) return;
  return {
    router,
    choices,
    grouped: values.groups.get(group)!,
    tokens: received.inputs[0]!,
    first: first!,
    hidden,
    ...slices ? { slices } : {},
    last,
  };
}

/** A stored value that a matmul on dispatched rows computes. */
function matmulAt(
  { model: { fusion, layouts, dispatched } }: Lowering,
  node: Node,
): ExpertMatmul | undefined {
  const dots = node.primitive === "dot"
    ? [node]
    : fusion.absorbs.get(node) ?? [];
  const fits = dots.length > 0 && fusion.stored.has(node) &&
    dots.every((dot) =>
      isMatmul(dot, layouts, dispatched) && dispatched.has(dot) &&
      dot.axes.join() === node.axes.join() &&
      layouts.get(dot.inputs[1]!)?.q8 !== true
    );
  return fits ? { node, dots: dots as NodeOf<"dot">[] } : undefined;
}

/** The even and the odd elements of a stored value, if a node reads no other rows. */
function slicesOf(
  { model: { fusion, dispatched } }: Lowering,
  node: Node,
): readonly [Node, Node] | "others" {
  const found = new Set<NodeOf<"slice">>();
  const visit = (inner: Node): boolean =>
    inner.inputs.every((input) => {
      if (!dispatched.has(input)) return true;
      if (input.primitive === "slice") {
        found.add(input);
        return true;
      }
      return !fusion.stored.has(input) && input.primitive !== "received" &&
        visit(input);
    });
  if (node.primitive !== "map" || !visit(node)) return "others";
  const slices = [...found].sort((a, b) => a.params.start - b.params.start);
  const [even, odd] = slices;
  if (!even || !odd || slices.length > 2) return "others";
  const fits = even.inputs[0] === odd.inputs[0] &&
    slices.every(({ params: { start, step, axis, to } }, i) =>
      start === i && step === 2 && axis === even.inputs[0]!.axes.at(-1) &&
      to === node.axes.at(-1)
    );
  return fits ? [even, odd] : "others";
}

function isOnlyUsedBy(
  graph: Graph,
  node: Node,
  users: readonly Node[],
): boolean {
  return usersOf(graph).get(node)!.every((user) => users.includes(user));
}

function isNamed(graph: Graph, nodes: readonly Node[]): boolean {
  return [graph.outputs, graph.states].some((named) =>
    Object.values(named).some((node) => nodes.includes(node))
  );
}
