/**
 * Placement: which axes of the model are sharded over which mesh axes. Checks and completes the request: axes that are
 * split from a placed axis, or merged into it, follow it.
 */

import { blockOfAxis, shortAxis } from "../../spec/axis_name.ts";
import { PlacementError } from "../../spec/errors.ts";
import type { Table } from "../../spec/table.ts";
import {
  groupSizeOf,
  type Mesh,
  MESH_AXES,
  stageAxis,
} from "../../spec/mesh.ts";
import { shown } from "../../spec/shown.ts";
import type { AxisLength, Short, ShortText } from "../../spec/values.ts";
import { type Graph, isRouting, type Node } from "../graph/graph.ts";
import { cachedSequences, checkCaches, shardCaches } from "./caches.ts";
import { conventionalPlacement } from "./conventions.ts";
import { shardKeyHeads } from "./key_heads.ts";
import { outermostOf } from "./local_axes.ts";
import { quoteAll } from "./messages.ts";

/** One or several mesh axes. */
type MeshAxes = ShortText | Short<ShortText>;

/**
 * The ids of a group rank.
 *
 * @maxItems 65536
 */
type RankIds = readonly AxisLength[];

/** Placement of an axis: mesh axes, optionally with a table of ids by group rank. */
export type AxisPlacement = ShortText | Short<ShortText> | {
  readonly over: MeshAxes;
  /** @maxItems 4096 */
  readonly table?: readonly RankIds[];
};

/**
 * Tensor axis -> placement. `expert` denotes the axis of that name of the model and of every block;
 * `layers.3.moe.expert` denotes the axis of one block and takes precedence.
 */
export interface Placement {
  readonly [axis: string]: AxisPlacement;
}

/** A checked placement: mesh axes of more than one rank, and the table of ids, if given. */
export interface Request {
  readonly over: readonly string[];
  readonly table?: Table;
}

/** Tensor axis -> its placement. */
export type Requests = ReadonlyMap<string, Request>;

/** The mesh, and the placement of axes on it. */
export interface PlacedMesh {
  readonly mesh: Mesh;
  readonly requests: Requests;
}

/** Options of `readPlacement`. */
export interface PlacementOptions {
  /** Default: by the names of mesh axes. */
  readonly place?: Placement | undefined;
  /** See `STRATEGY_OPTIONS`. Default: false. */
  readonly sliceExperts?: boolean | undefined;
}

/**
 * Reads the requested placement, or the default for the mesh. If attention has fewer key heads than ranks for its
 * heads, a mesh axis is split into two, and key heads are sharded over the first. Throws PlacementError.
 */
export function readPlacement(
  graph: Graph,
  mesh: Mesh,
  { place: requested, sliceExperts = false }: PlacementOptions = {},
): PlacedMesh {
  checkMesh(mesh);
  if (requested && sliceExperts) {
    throw new PlacementError(
      "Cannot slice experts with a placement: it states which axes are sharded. Place their hidden axis, or leave out --slice-experts",
    );
  }
  if (!requested) checkNames(mesh);
  const given = requested
    ? readRequests(graph, mesh, requested)
    : conventionalPlacement(graph, mesh, { sliceExperts });
  checkAllUsed(mesh, given);
  const experts = new Set(
    graph.nodes.filter(isRouting).map(({ params }) => params.expert),
  );
  for (const axis of new Set([...experts, ...given.keys()])) {
    checkTable(graph, mesh, given, axis);
  }
  const wide = new Map(
    [...given].map(([axis, request]) => [axis, {
      ...request,
      over: request.over.filter((name) => groupSizeOf(mesh, [name]) > 1),
    }]),
  );
  follow(graph, wide);
  const placed = shardKeyHeads(graph, { mesh, requests: wide });
  const caches = cachedSequences(graph);
  const requests = shardCaches(caches, placed.requests);
  follow(graph, requests);
  checkCaches(graph, caches, { mesh: placed.mesh, requests });
  return { mesh: placed.mesh, requests };
}

function checkMesh(mesh: Mesh): void {
  for (const { name, size } of mesh) {
    if (!Number.isInteger(size) || size < 1) {
      throw new PlacementError(
        `Cannot make mesh axis '${name}': its size is ${size}. Give a whole number from 1`,
      );
    }
  }
  const names = mesh.map((axis) => axis.name);
  const twice = names.find((name, i) => names.indexOf(name) !== i);
  if (twice) {
    throw new PlacementError(
      `Cannot make the mesh: it has two axes '${twice}'. Name each once`,
    );
  }
}

/** Names of other systems for mesh axes with a default placement. */
const SYNONYMS: { readonly [name: string]: string } = {
  data: "dp",
  fsdp: "dp",
  expert: "ep",
  experts: "ep",
  model: "tp",
  mp: "tp",
  tensor: "tp",
  context: "cp",
  pipeline: "pp",
  stage: "pp",
};

/** Rejects mesh axes without a default placement if no placement is given. */
function checkNames(mesh: Mesh): void {
  const known = Object.keys(MESH_AXES);
  const unknown = mesh.find(({ name }) => !known.includes(name));
  if (!unknown) return;
  const { name, size } = unknown;
  const letters = (text: string) => [...text.toLowerCase()].sort().join("");
  const meant = SYNONYMS[name.toLowerCase()] ??
    known.find((other) => letters(other) === letters(name));
  throw new PlacementError(
    `Cannot use mesh axis '${
      shown(name)
    }': only dp, ep, tp, cp and pp have a default placement. ${
      meant ? `Write ${meant}=${size}` : "Use one of them"
    }, or name the tensor axes to shard over it with --place, for example --place expert=${
      shown(name)
    },token=${shown(name)}`,
  );
}

function readRequests(
  graph: Graph,
  mesh: Mesh,
  requested: Placement,
): Map<string, Request> {
  const requests = new Map<string, Request>();
  const axes = Object.keys(graph.axes);
  // Axes of one block come last and override those of all blocks.
  const entries = Object.entries(requested).sort(([a], [b]) =>
    Number(blockOfAxis(a) !== "") - Number(blockOfAxis(b) !== "")
  );
  for (const [name, value] of entries) {
    const named = axes.filter((axis) =>
      axis === name || shortAxis(axis) === name
    );
    if (named.length === 0) {
      throw new PlacementError(
        `Cannot place axis '${name}': the model has no such axis. Its axes are ${
          quoteAll([...new Set(axes.map(shortAxis))])
        }`,
      );
    }
    const given = typeof value === "string" || Array.isArray(value)
      ? { over: value }
      : value as Exclude<AxisPlacement, string | readonly string[]>;
    const over = typeof given.over === "string"
      ? [given.over]
      : given.over as readonly string[];
    for (const meshAxis of over) {
      if (!mesh.some((axis) => axis.name === meshAxis)) {
        throw new PlacementError(
          `Cannot place axis '${name}' over '${meshAxis}': the mesh has no such axis. Its axes are ${
            quoteAll(mesh.map((axis) => axis.name))
          }`,
        );
      }
    }
    const request = "table" in given && given.table
      ? { over, table: given.table }
      : { over };
    for (const axis of named) requests.set(axis, request);
  }
  return requests;
}

function checkAllUsed(mesh: Mesh, requests: Requests): void {
  const used = new Set(
    [...requests.values()].flatMap((request) => request.over),
  );
  const stages = stageAxis(mesh)?.name;
  for (const { name, size } of mesh) {
    if (size > 1 && !used.has(name) && name !== stages) {
      throw new PlacementError(
        `Cannot use mesh axis '${name}': no axis of the model is placed over it. Place one, or remove it from the mesh`,
      );
    }
  }
}

/** Checks that a table has each id once. Throws PlacementError. */
function checkTable(
  graph: Graph,
  mesh: Mesh,
  requests: Requests,
  axis: string,
): void {
  const { over = [], table } = requests.get(axis) ?? {};
  if (typeof table !== "object") return;
  const { size } = graph.axes[axis]!;
  const groupSize = groupSizeOf(mesh, over);
  const ids = table.flat().sort((a, b) => a - b);
  if (
    table.length !== groupSize || ids.length !== size ||
    ids.some((id, i) => id !== i)
  ) {
    throw new PlacementError(
      `Cannot place axis '${axis}': its table must hold each of 0 to ${
        size - 1
      } once, in ${groupSize} lists. Correct the table`,
    );
  }
}

/** Adds the axes that follow placed ones: the outermost part of a split or merged axis and the combined axis. */
function follow({ nodes, axes }: Graph, requests: Map<string, Request>): void {
  // Axes of inputs are assigned to ranks; their shards are not blocks of a split axis.
  const given = new Set(
    nodes.flatMap((node) => node.primitive === "input" ? node.axes : []),
  );
  const pairs = nodes.flatMap((node) => linkedAxes(node, axes)).filter((pair) =>
    pair.every((axis) => !axes[axis]?.dynamic && !given.has(axis))
  );
  for (let before = -1; before !== requests.size;) {
    before = requests.size;
    for (const [a, b] of pairs) {
      for (const [from, to] of [[a, b], [b, a]] as const) {
        const request = requests.get(from);
        if (request && !requests.has(to)) {
          requests.set(to, { over: request.over });
        }
      }
    }
  }
}

/** Pairs of axes with the same sharding. */
function linkedAxes(
  { primitive, params }: Node,
  axes: Graph["axes"],
): readonly (readonly [string, string])[] {
  switch (primitive) {
    case "split":
      return [[params.axis, outermostOf(axes, params.into)]];
    case "merge":
      return [[params.to, outermostOf(axes, params.axes)]];
    default:
      return [];
  }
}
