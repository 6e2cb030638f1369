/**
 * Default placement: mesh axes with the usual names have their usual meaning (`MESH_AXES` in spec/mesh.ts), and the
 * role of a model axis follows from its use.
 */

import {
  groupSizeOf,
  type Mesh,
  type MeshRole,
  meshRoles,
} from "../../spec/mesh.ts";
import { adaptedParameter } from "../graph/adapters.ts";
import { type Graph, isRouting, type Node } from "../graph/graph.ts";
import { dispatchedNodes } from "../graph/routing/dispatched_nodes.ts";
import { PlacementError } from "../../spec/errors.ts";
import type { Request } from "./placement.ts";

/**
 * The default placement of the axes of a graph. An axis is sharded only if its size is divisible, except for tokens and
 * experts. `sliceExperts`: mesh axes of hidden elements shard those of each expert, instead of the experts. Throws
 * PlacementError.
 */
export function conventionalPlacement(
  graph: Graph,
  mesh: Mesh,
  { sliceExperts }: { readonly sliceExperts: boolean },
): Map<string, Request> {
  const requests = new Map<string, Request>();
  const roles = rolesOf(graph);
  const slices = (name: string) =>
    sliceExperts && meshRoles(name).includes("hidden");
  if (mesh.some(({ name }) => slices(name))) {
    roles.set("hidden", [...roles.get("hidden")!, ...slicedAxes(graph)]);
  }
  for (const [role, axes] of roles) {
    const over = mesh.flatMap(({ name }) =>
      meshRoles(name).includes(role) && !(role === "experts" && slices(name))
        ? [name]
        : []
    );
    if (over.length === 0) continue;
    const unused = role === "context" && axes.length === 0;
    if (unused && groupSizeOf(mesh, over) > 1) {
      throw new PlacementError(
        `Cannot use mesh axis '${
          over[0]
        }': the model has no attention over a cache whose positions it could shard. Remove it from the mesh`,
      );
    }
    for (const axis of axes) {
      // A vocabulary may have any size, and replicating it costs little.
      if (role === "vocabulary" && !divides(graph, mesh, axis, over)) continue;
      if (!requests.has(axis)) {
        requests.set(axis, { over: ordered(role, over) });
      }
    }
  }
  return requests;
}

/**
 * Orders mesh axes so that experts are sharded over their exclusive axes first. Neighbours in the group of a token are
 * then nearest.
 */
function ordered(role: MeshRole, over: readonly string[]): readonly string[] {
  if (role !== "experts") return over;
  const tokens = over.filter((name) => meshRoles(name).includes("tokens"));
  return [...tokens, ...over.filter((name) => !tokens.includes(name))];
}

/** Roles of axes for default placement. */
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
    [
      "context",
      attentions.flatMap((params) =>
        "context" in params ? [params.context] : []
      ),
    ],
    ["vocabulary", vocabularyOf(graph)],
    ["hidden", hiddenOf(graph)],
  ]);
}

/** Axes of parameters whose rows are read by index. */
function vocabularyOf({ nodes }: Graph): string[] {
  return nodes.flatMap(({ primitive, inputs, params }) =>
    primitive === "embedding" && inputs[0]!.primitive === "param"
      ? [params.over]
      : []
  );
}

/** The hidden axes of experts. Throws PlacementError if the experts of a routing have none. */
function slicedAxes(graph: Graph): string[] {
  const axes = hiddenOf(graph, { ofExperts: true });
  const dispatched = dispatchedNodes(graph);
  const sliced = new Set(
    graph.nodes.filter((node) => node.axes.some((axis) => axes.includes(axis)))
      .map((node) => dispatched.get(node)),
  );
  for (const route of new Set(dispatched.values())) {
    if (sliced.has(route)) continue;
    throw new PlacementError(
      "Cannot slice experts: their hidden axes are in matrices of gates and factors, or are not between two matrices. Leave out --slice-experts",
    );
  }
  return axes;
}

/**
 * The hidden axes of feed-forward blocks: axes between two contractions with parameters with only elementwise ops
 * between. Those of experts are separate.
 */
function hiddenOf(
  graph: Graph,
  { ofExperts = false }: { readonly ofExperts?: boolean } = {},
): string[] {
  const dispatched = dispatchedNodes(graph);
  const axes = {
    made: new Set<string>(),
    contracted: new Set<string>(),
    other: new Set<string>(),
  };
  for (const node of graph.nodes) {
    const { primitive } = node;
    if (node.phase || primitive === "param") continue;
    const isOther = dispatched.has(node) !== ofExperts;
    if (!isOther && (primitive === "map" || primitive === "cast")) continue;
    for (const axis of new Set([node, ...node.inputs].flatMap((n) => n.axes))) {
      axes[isOther ? "other" : hiddenRole(node, axis)].add(axis);
    }
  }
  return [...axes.made].filter((axis) =>
    axes.contracted.has(axis) && !axes.other.has(axis) &&
    !graph.axes[axis]!.dynamic
  );
}

function hiddenRole(
  node: Node,
  axis: string,
): "made" | "contracted" | "other" {
  if (node.primitive !== "dot") return "other";
  const [left, right] = node.inputs as [Node, Node];
  if (right.primitive !== "param" || !right.axes.includes(axis)) return "other";
  if (node.params.over.includes(axis)) return "contracted";
  // The short axis of an adapter is replicated.
  const low = adaptedParameter(right.params.name)?.matrix === "a";
  return low || left.axes.includes(axis) ? "other" : "made";
}

/** Whether an axis is evenly divisible. */
function divides(
  { axes }: Graph,
  mesh: Mesh,
  axis: string,
  over: readonly string[],
): boolean {
  return axes[axis]!.size % groupSizeOf(mesh, over) === 0;
}
