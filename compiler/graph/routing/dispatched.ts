/**
 * Dispatched values: between a dispatch and its combine, rows belong to one routing and must stay separate. Finds the
 * routing of every value, and rejects nodes that mix rows, change the routing or are never combined.
 */

import { ofCollectives } from "../collectives.ts";
import { atSpan as at, ModelError } from "../../../spec/errors.ts";
import { words } from "../messages.ts";
import { type Problems, report } from "../problems.ts";
import {
  type Node,
  type NodeOf,
  ofExpanded,
  type Primitive,
  type RoutingNode,
  valueInputs,
} from "../graph.ts";
import { definedRows } from "../primitives/mod.ts";

/** The dispatch of a node's value. */
type Sent = NodeOf<"dispatch">;

function routeOf(node: Node): RoutingNode {
  return node.inputs[1] as RoutingNode;
}

/** Whether an op affects axes of a dispatched value that it must preserve. */
function touches(sent: Sent, axes: readonly string[]): string | undefined {
  const { expert, slot } = routeOf(sent).params;
  return axes.find((axis) => axis === expert || axis === slot);
}

/** The axes along which a primitive mixes or moves rows of a dispatch. "no": it does not accept rows. */
const MIXES: {
  readonly [P in Primitive]: "no" | ((node: NodeOf<P>) => readonly string[]);
} = {
  input: () => [],
  param: () => [],
  state: () => [],
  map: () => [],
  dot: (node) => node.params.over,
  reduce: (node) => [node.params.over],
  ...definedRows("mixes"),
  reduceSum: () => [],
  rope: (node) => [node.params.over],
  embedding: "no",
  scatterAdd: "no",
  rename: (node) => [node.params.from],
  split: (node) => [node.params.axis],
  merge: (node) => node.params.axes,
  slice: (node) => [node.params.axis],
  concat: (node) => node.params.axes,
  dilate: (node) => [node.params.axis],
  transpose: (node) =>
    [0, 1].flatMap((i) =>
      node.axes[i] === node.inputs[0]!.axes[i] ? [] : [
        node.axes[i]!,
        node.inputs[0]!.axes[i]!,
      ]
    ),
  cast: () => [],
  topK: (node) => [node.params.over],
  route: "no",
  choices: "no",
  tupleElement: () => [],
  optimizationBarrier: () => [],
  ...ofCollectives(() => "no" as const),
  dispatch: "no",
  combine: () => [],
  combineTranspose: () => [],
  ...ofExpanded("no" as const),
  cacheWrite: "no",
  attention: "no",
  attentionSum: "no",
  attentionGrad: "no",
};

/** The op of a node, as the user wrote it. */
function opOf(node: Node): string {
  if (node.primitive === "map") return node.params.op;
  if (node.primitive === "reduce") return node.params.kind;
  if (node.primitive === "embedding") return "embed";
  if (node.primitive === "cacheWrite" || node.primitive === "attention") {
    return "attend with";
  }
  return node.primitive;
}

function ofOperands(node: Node, sent: ReadonlyMap<Node, Sent>) {
  let found: Sent | undefined;
  for (const input of valueInputs(node)) {
    const of = sent.get(input);
    if (of === undefined) continue;
    if (found !== undefined && routeOf(found) !== routeOf(of)) {
      throw new ModelError(
        `Cannot ${opOf(node)} values of two routings: one was dispatched${
          at(found.span)
        }, the other${at(of.span)}. Combine them first`,
        node.span,
      );
    }
    found ??= of;
  }
  return found;
}

function combined(node: Node, sent: Sent | undefined): void {
  const routing = routeOf(node);
  if (sent === undefined) {
    throw new ModelError(
      `Cannot combine '${
        node.inputs[0]!.axes.join(" ")
      }': it was never dispatched. Dispatch it by the routing${
        at(routing.span)
      }`,
      node.span,
    );
  }
  if (routeOf(sent) !== routing) {
    throw new ModelError(
      `Cannot combine by the routing${
        at(routing.span)
      }: the value was dispatched${at(sent.span)} by the routing${
        at(routeOf(sent).span)
      }. Combine by that one`,
      node.span,
    );
  }
}

/** Whether a node sums the rows of each expert. Its result then has no rows. */
function sumsRows(node: Node, sent: Sent): boolean {
  return node.primitive === "reduceSum" &&
    node.params.over.includes(routeOf(sent).params.slot);
}

/**
 * Checks every value between dispatch and combine. `dispatched`: all dispatches of the model function. Throws
 * ModelError.
 */
export function checkDispatched(
  nodes: readonly Node[],
  results: readonly Node[],
  { dispatched, problems }: {
    readonly dispatched: readonly Node[];
    /** Collects mistakes. Default: they are thrown. */
    readonly problems?: Problems | undefined;
  },
): void {
  const sent = new Map<Node, Sent>();
  for (const node of nodes) {
    try {
      checkNode(node, sent);
    } catch (error) {
      if (!(error instanceof ModelError)) throw error;
      report(problems, error, [node, ...node.inputs]);
      problems?.wrong.add(node);
    }
  }
  const remaining = new Set(nodes);
  const lost = new Set([
    ...results.flatMap((node) => sent.get(node) ?? []),
    ...dispatched.filter((node) => !remaining.has(node)),
  ]);
  for (const node of lost) {
    if (meetsWrong(node, problems)) continue;
    const error = new ModelError(
      `Cannot dispatch '${
        words(node.inputs[0]!.axes)
      }': the result never reaches combine. Combine it by the routing${
        at(routeOf(node as Sent).span)
      }`,
      node.span,
    );
    report(problems, error, [node]);
  }
}

/** Whether a node is used by a wrong node, which may be the missing combine. */
function meetsWrong(node: Node, problems: Problems | undefined): boolean {
  if (!problems) return false;
  const visited = new Set([node]);
  return problems.made.some((other) => {
    if (!other.inputs.some((input) => visited.has(input))) return false;
    visited.add(other);
    return problems.wrong.has(other);
  });
}

/** Finds the routing of a node, and rejects forbidden ops on rows. */
function checkNode(node: Node, sent: Map<Node, Sent>): void {
  const of = ofOperands(node, sent);
  if (node.primitive === "combine" || node.primitive === "combineTranspose") {
    combined(node, sent.get(node.inputs[0]!));
    return;
  }
  if (of !== undefined && sumsRows(node, of)) return;
  if (of === undefined) {
    if (node.primitive === "dispatch") sent.set(node, node);
    return;
  }
  const mixes = MIXES[node.primitive] as "no" | ((n: Node) => string[]);
  if (mixes === "no") {
    throw new ModelError(
      `Cannot ${opOf(node)} a dispatched value: it was dispatched${
        at(of.span)
      }. Combine it first`,
      node.span,
    );
  }
  const axis = touches(of, mixes(node));
  if (axis !== undefined) {
    throw new ModelError(
      `Cannot ${opOf(node)} over '${axis}': the value was dispatched${
        at(of.span)
      }, and its rows must stay apart. Combine it first`,
      node.span,
    );
  }
  sent.set(node, of);
}
