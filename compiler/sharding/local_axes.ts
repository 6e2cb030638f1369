/**
 * Local axes: an axis of the model and the mesh axes that shard it form one *local axis* with its own length. After
 * `shard`, no pass refers to the mesh otherwise.
 */

import { blockSizes, groupSizeOf, type Mesh } from "../../spec/mesh.ts";
import type { PlanAxis } from "../../spec/plan/plan.ts";
import { type Table, tableLengths } from "../../spec/table.ts";
import { type Graph, isRouting, type Node } from "../graph/graph.ts";
import { updatedBy } from "../graph/in_place.ts";
import { looksAtGroup, routeOperand } from "../graph/routing/presets.ts";
import { cachedSequences } from "./caches.ts";
import type { Requests } from "./placement.ts";
import type { Stages } from "./stages.ts";
import {
  extendsOver,
  isWithinOver,
  localName,
  sameOver,
} from "../graph/sharding.ts";

/** How the items of a ragged axis are assigned to ranks. */
export type Assignment = NonNullable<PlanAxis["assignment"]>;

/** Facts about the axes of a graph on a mesh. */
export interface AxisFacts {
  readonly graph: Graph;
  readonly mesh: Mesh;
  readonly requests: Requests;
  readonly experts: ReadonlySet<string>;
  /** Axes of inputs whose items are assigned to the ranks of the items that they number, with those axes. */
  readonly followers: ReadonlyMap<string, Extract<Assignment, { by: "items" }>>;
  /** Axes of tokens, and placed axes, of inputs: the host assigns their items to ranks. */
  readonly given: ReadonlySet<string>;
  /** The inputs whose values determine the assignment of items to ranks, by axis. */
  readonly assigning: ReadonlyMap<string, string>;
  /** The pipeline stages of nodes, if the mesh has any. */
  readonly stages?: Stages | undefined;
}

/** Collects the facts about the axes of a graph. */
export function axisFacts(
  graph: Graph,
  mesh: Mesh,
  requests: Requests,
  stages?: Stages,
): AxisFacts {
  const experts = new Set(
    graph.nodes.filter(isRouting).map(({ params }) => params.expert),
  );
  const tokens = new Set(graph.nodes.flatMap(tokensOf));
  const given = new Set(
    graph.nodes.flatMap((node) => node.primitive === "input" ? node.axes : [])
      .filter((axis) => tokens.has(axis) || requests.get(axis)?.over.length),
  );
  const all = new Map(requests);
  const followers = followersOf(graph, requests);
  for (const [name, { of }] of followers) {
    all.set(name, { over: all.get(of)!.over });
  }
  return {
    graph,
    mesh,
    requests: all,
    experts,
    followers,
    given,
    assigning: assigningInputs(graph),
    stages,
  };
}

/** Token axes: routed ones and those of attention. */
function tokensOf(node: Node): readonly string[] {
  if (isRouting(node)) return node.params.tokens;
  return node.primitive === "attention" ||
      node.primitive === "linearRecurrence" ||
      node.primitive === "selectKeys" || node.primitive === "selectBlocks"
    ? [node.params.token]
    : [];
}

/** Whether the local length of an axis is dynamic. */
export function isRagged(
  { graph, experts, given }: AxisFacts,
  axis: string,
): boolean {
  return graph.axes[axis]?.dynamic || given.has(axis) && !experts.has(axis);
}

/** The first of merged axes, or of the parts of a split one, that is longer than 1. The first one if none is. */
export function outermostOf(
  axes: Graph["axes"],
  parts: readonly string[],
): string {
  return parts.find((axis) => axes[axis]!.size > 1) ?? parts[0]!;
}

/** The mesh axes that an axis is placed over. */
export function placedOver(
  { requests }: AxisFacts,
  axis: string,
): readonly string[] {
  return requests.get(axis)?.over ?? [];
}

/**
 * Token axes whose sequences are placed, and axes of inputs that index rows of a placed axis. Items are assigned to the
 * rank of the item that they number.
 */
function followersOf(
  graph: Graph,
  requests: Requests,
): Map<string, Extract<Assignment, { by: "items" }>> {
  const { nodes, axes } = graph;
  const followers = new Map<string, Extract<Assignment, { by: "items" }>>();
  for (const cached of cachedSequences(graph)) {
    const { sequence, token, input, positions: each } = cached;
    const request = requests.get(sequence);
    if (!request?.over.length) continue;
    const bounded = each !== undefined && !axes[sequence]!.dynamic;
    followers.set(token, {
      by: "items",
      input,
      of: sequence,
      ...bounded ? { each } : {},
    });
  }
  for (const node of nodes) {
    if (node.primitive !== "embedding") continue;
    const { over } = node.params;
    const ids = node.inputs[1]!;
    const [axis, second] = ids.axes;
    if (ids.primitive !== "input" || axis === undefined || second) continue;
    const where = requests.get(over)?.over;
    const placed = requests.get(axis)?.over ?? where;
    if (!where?.length || !placed || !sameOver(placed, where)) continue;
    if (node.inputs[0]!.primitive === "param") continue;
    if (!axes[over] || followers.has(axis)) continue;
    if (follows(followers, over, axis)) continue;
    followers.set(axis, { by: "items", input: ids.params.name, of: over });
  }
  return followers;
}

/** Whether items of an axis are assigned to the ranks of those of another, directly or transitively. */
function follows(
  followers: ReadonlyMap<string, { readonly of: string }>,
  axis: string,
  other: string,
): boolean {
  for (let at: string | undefined = axis; at; at = followers.get(at)?.of) {
    if (at === other) return true;
  }
  return false;
}

/**
 * The input whose values determine the assignment of each axis to ranks: that of a sequence, else that of a routing
 * group.
 */
function assigningInputs({ nodes }: Graph): Map<string, string> {
  const sequences = nodes.map((node) =>
    node.primitive === "attention" ? node.inputs[3] : updatedBy(node)
  );
  const groups = nodes.map((node) =>
    node.primitive === "route" && looksAtGroup(node.params.rule)
      ? routeOperand(node, "group")
      : undefined
  );
  const inputs = new Map<string, string>();
  for (const node of [...sequences, ...groups]) {
    if (node?.primitive !== "input") continue;
    const axis = node.axes.join();
    if (!inputs.has(axis)) inputs.set(axis, node.params.name);
  }
  return inputs;
}

/** A local axis: its local length or bound, and its relation to an axis of the model. */
export interface LocalAxis {
  /** The axis of the model. */
  readonly of: string;
  readonly over: readonly string[];
  /** The maximum over ranks. For a ragged axis: the bound over all ranks. */
  readonly size: number;
  /** Whether its local length is dynamic. */
  readonly dynamic: boolean;
  /** Whether its total length is fixed and only its parts are dynamic. */
  readonly exact?: boolean;
  /** Whether it numbers experts. */
  readonly experts?: true;
  /** Total length over all ranks. */
  readonly total: number;
  /** Ids of each group rank, for a sharded axis that is not ragged. */
  readonly table?: Table;
  /** Assignment of the items of a ragged, sharded axis. */
  readonly assignment?: Assignment;
  /** The local axis that `assignment` refers to. */
  readonly by?: { readonly axis: string; readonly over: readonly string[] };
}

/** The local axis of an axis that is sharded over these mesh axes. */
export function localAxis(
  facts: AxisFacts,
  of: string,
  over: readonly string[],
): LocalAxis {
  const { graph, mesh, requests, experts } = facts;
  const { size, dynamic } = graph.axes[of]!;
  const common = { of, over, size, total: size };
  const numbered = experts.has(of) ? { experts: true } as const : {};
  if (over.length === 0) return { ...common, dynamic, ...numbered };
  if (isRagged(facts, of)) {
    return {
      ...common,
      dynamic: true,
      ...dynamic ? {} : { exact: true },
      ...assignmentOf(facts, of, over),
    };
  }
  const request = requests.get(of);
  const groupSize = groupSizeOf(mesh, over);
  const table = request?.table && sameOver(request.over, over)
    ? request.table
    : experts.has(of)
    ? evenly(size, groupSize)
    : "block";
  const max = Math.max(...tableLengths({ size, table }, groupSize));
  return { ...common, size: max, dynamic: false, table, ...numbered };
}

/** Contiguous ids, divided as evenly as possible. */
function evenly(size: number, groupSize: number): Table {
  if (size % groupSize === 0) return "block";
  let next = 0;
  return blockSizes(size, groupSize)
    .map((n) => Array.from({ length: n }, () => next++));
}

/**
 * The assignment of a ragged axis. Tokens of a sequence or of a routing group stay on one rank; otherwise each rank has
 * a block. An axis gathered over some of its mesh axes is the concatenation within a group of ranks.
 */
function assignmentOf(
  { assigning, requests, followers }: AxisFacts,
  axis: string,
  over: readonly string[],
): Pick<LocalAxis, "assignment" | "by"> {
  const placed = requests.get(axis)?.over ?? [];
  if (sameOver(placed, over)) {
    const follows = followers.get(axis);
    if (follows) {
      const by = { axis: follows.of, over };
      return {
        assignment: { ...follows, of: localName(follows.of, over) },
        by,
      };
    }
    const input = assigning.get(axis);
    return {
      assignment: input === undefined
        ? { by: "blocks" }
        : { by: "sequence", input },
    };
  }
  if (isWithinOver(over, placed)) {
    const of = localName(axis, placed);
    return { assignment: { by: "group", of }, by: { axis, over: placed } };
  }
  const known = over.filter((name) => placed.includes(name));
  if (known.length === 0 || !extendsOver(over, known)) {
    return { assignment: { by: "blocks" } };
  }
  const within = localName(axis, known);
  return { assignment: { by: "blocks", within }, by: { axis, over: known } };
}

/** The leaves of one primitive in a graph, by name. */
export function leavesOf(
  { nodes }: Graph,
  primitive: "state" | "param" | "input",
): Map<string, Node> {
  return new Map(
    nodes.flatMap((node) =>
      node.primitive === primitive && "name" in node.params
        ? [[node.params.name, node] as const]
        : []
    ),
  );
}
