/**
 * Where axes are placed if nobody says: the names of mesh axes that the field uses have their usual meaning (see
 * `MESH_AXES` in spec/mesh.ts), and what an axis is follows from how the model uses it.
 */

import {
  groupSizeOf,
  type Mesh,
  type MeshRole,
  meshRoles,
} from "../../spec/mesh.ts";
import { type Graph, isRouting, type Node } from "../graph/graph.ts";
import { dispatchedNodes } from "../graph/dispatched_nodes.ts";
import type { Request } from "./placement.ts";

/** The usual placement of the axes of a graph. An axis is sharded only where its size divides, but for tokens and experts. */
export function conventionalPlacement(
  graph: Graph,
  mesh: Mesh,
): Map<string, Request> {
  const requests = new Map<string, Request>();
  const roles = rolesOf(graph);
  for (const [role, axes] of roles) {
    const over = mesh.flatMap(({ name }) =>
      meshRoles(name).includes(role) ? [name] : []
    );
    if (over.length === 0) continue;
    for (const axis of axes) {
      // A vocabulary has any size, and costs little where every rank has all of it.
      if (role === "vocabulary" && !divides(graph, mesh, axis, over)) continue;
      if (!requests.has(axis)) {
        requests.set(axis, { over: ordered(role, over) });
      }
    }
  }
  return requests;
}

/** Experts are sharded over the axes that only they use first, so that a token finds neighbours of its group nearest. */
function ordered(role: MeshRole, over: readonly string[]): readonly string[] {
  if (role !== "experts") return over;
  const tokens = over.filter((name) => meshRoles(name).includes("tokens"));
  return [...tokens, ...over.filter((name) => !tokens.includes(name))];
}

/** What axes are, as far as it matters to where they are placed. */
function rolesOf(graph: Graph): Map<MeshRole, readonly string[]> {
  const routes = graph.nodes.filter(isRouting);
  const experts = routes.map(({ params }) => params.expert);
  const attentions = graph.nodes.flatMap((node) =>
    node.primitive === "attention" || node.primitive === "linearRecurrence"
      ? [node.params]
      : []
  );
  const tokens = [
    ...routes.map(({ params }) => params.tokens[0]!),
    ...attentions.map(({ token }) => token),
  ];
  return new Map<MeshRole, readonly string[]>([
    ["experts", experts],
    ["tokens", tokens],
    ["heads", attentions.map(({ head }) => head)],
    ["vocabulary", vocabularyOf(graph)],
    ["hidden", hiddenOf(graph)],
  ]);
}

/** Axes of parameters whose rows are picked by index. */
function vocabularyOf({ nodes }: Graph): string[] {
  return nodes.flatMap(({ primitive, inputs, params }) =>
    primitive === "embedding" && inputs[0]!.primitive === "param"
      ? [params.over]
      : []
  );
}

/**
 * Axes between two contractions with parameters, and nothing but elementwise work on the way: the hidden elements of a
 * feed-forward block. Those of experts are not among them: there the experts are sharded.
 */
function hiddenOf(graph: Graph): string[] {
  const dispatched = dispatchedNodes(graph);
  const made = new Set<string>();
  const contracted = new Set<string>();
  const other = new Set<string>();
  for (const node of graph.nodes) {
    const axes = new Set([node, ...node.inputs].flatMap((n) => n.axes));
    if (node.phase || node.primitive === "param") continue;
    if (dispatched.has(node)) {
      for (const axis of axes) other.add(axis);
      continue;
    }
    for (const axis of axes) {
      const role = hiddenRole(node, axis);
      if (role === "made") made.add(axis);
      else if (role === "contracted") contracted.add(axis);
      else if (role === "other") other.add(axis);
    }
  }
  return [...made].filter((axis) =>
    contracted.has(axis) && !other.has(axis) && !graph.axes[axis]!.dynamic
  );
}

function hiddenRole(
  node: Node,
  axis: string,
): "made" | "contracted" | "passed" | "other" {
  if (node.primitive === "map" || node.primitive === "cast") return "passed";
  if (node.primitive !== "dot") return "other";
  const [left, right] = node.inputs as [Node, Node];
  const parameter = right.primitive === "param";
  if (!parameter || !right.axes.includes(axis)) return "other";
  if (node.params.over.includes(axis)) return "contracted";
  return left.axes.includes(axis) ? "other" : "made";
}

/** Whether an axis can be divided evenly. */
function divides(
  { axes }: Graph,
  mesh: Mesh,
  axis: string,
  over: readonly string[],
): boolean {
  return axes[axis]!.size % groupSizeOf(mesh, over) === 0;
}
