/**
 * Placement: which axes lie over which mesh axes, and how long each is on each rank. Holds after it: every axis has an
 * entry. This pass does not move data.
 */

import { PlacementError } from "../../spec/errors.ts";
import {
  blockSizes,
  groupRanks,
  type Mesh,
  positionsOver,
  rankCount,
} from "../../spec/mesh.ts";
import type { PlanAxis } from "../../spec/plan.ts";
import type { Size } from "../../spec/size.ts";
import { type Graph, isRouting, type RoutingNode } from "../graph/graph.ts";
import type { Placed } from "./placed.ts";
import { dealInput } from "./whole_axes.ts";

/** Where an axis lies: mesh axes, optionally with a table of ids per position. */
export type AxisPlacement = string | readonly string[] | {
  readonly over: string | readonly string[];
  readonly table?: readonly (readonly number[])[];
};

/** Tensor axis -> placement. */
export interface Placement {
  readonly [axis: string]: AxisPlacement;
}

interface Request {
  readonly over: readonly string[];
  readonly table?: readonly (readonly number[])[];
}

/** Place the axes of `graph` on `mesh`. Without `requested`, experts lie over `ep` and tokens over all of `dp` and `ep`. Throws PlacementError. */
export function placeAxes(
  graph: Graph,
  mesh: Mesh,
  requested?: Placement,
): Placed {
  checkMesh(mesh);
  const routes = graph.nodes.filter(isRouting);
  const expertAxes = new Set(routes.map((route) => route.params.expert));
  const requests = requested
    ? readRequests(graph, mesh, requested)
    : defaultRequests(mesh, routes);
  checkAllUsed(mesh, requests);
  const followers = followersOf(graph, requests);
  for (const [name, { of }] of followers) requests.set(name, requests.get(of)!);
  const axes: { [name: string]: PlanAxis } = {};
  for (const [name, { size, dynamic }] of Object.entries(graph.axes)) {
    const request = requests.get(name);
    if (expertAxes.has(name)) {
      axes[name] = expertAxis(name, size, mesh, request);
    } else if (!request || positionsOver(mesh, request.over) === 1) {
      axes[name] = dynamic ? { size, dynamic: true } : { size };
    } else {
      axes[name] = {
        size,
        dynamic: true,
        ...(dynamic ? {} : { exact: true }),
        over: request.over,
        deal: followers.get(name) ?? dealOf(graph, name),
      };
    }
  }
  const aliases = aliasesOf(graph);
  const counts = Object.keys(axes).filter((name) =>
    axes[name]!.dynamic && !aliases[name]
  );
  return {
    ...{ mesh, ranks: rankCount(mesh), axes, counts },
    ...{ aliases, expertAxes },
  };
}

/** Run-time axes that verbs renamed, with the axis whose length they have. */
export function aliasesOf({ nodes, axes }: Graph): { [name: string]: string } {
  const aliases: { [name: string]: string } = {};
  for (const { primitive, params } of nodes) {
    if (primitive !== "rename" || !axes[params.from]!.dynamic) continue;
    aliases[params.to] = aliases[params.from] ?? params.from;
  }
  return aliases;
}

/** The name by which the plan knows an axis. */
export function planAxis({ aliases }: Placed, axis: string): string {
  return aliases[axis] ?? axis;
}

function checkMesh(mesh: Mesh): void {
  for (const { name, size } of mesh) {
    if (name !== "dp" && name !== "ep") {
      throw new PlacementError(
        `Cannot use mesh axis '${name}': the mesh axes are 'dp' and 'ep'. Rename or remove it`,
      );
    }
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

function defaultRequests(
  mesh: Mesh,
  routes: readonly RoutingNode[],
): Map<string, Request> {
  const requests = new Map<string, Request>();
  const all = mesh.map((axis) => axis.name);
  if (all.length === 0) return requests;
  for (const route of routes) {
    if (all.includes("ep")) requests.set(route.params.expert, { over: ["ep"] });
    requests.set(route.params.tokens[0]!, { over: all });
  }
  return requests;
}

function readRequests(
  graph: Graph,
  mesh: Mesh,
  requested: Placement,
): Map<string, Request> {
  const requests = new Map<string, Request>();
  for (const [name, value] of Object.entries(requested)) {
    if (!graph.axes[name]) {
      throw new PlacementError(
        `Cannot place axis '${name}': the model has no such axis. Its axes are ${
          quoteAll(Object.keys(graph.axes))
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
    requests.set(
      name,
      "table" in given && given.table ? { over, table: given.table } : { over },
    );
  }
  return requests;
}

function checkAllUsed(mesh: Mesh, requests: Map<string, Request>): void {
  const used = new Set(
    [...requests.values()].flatMap((request) => request.over),
  );
  for (const { name, size } of mesh) {
    if (size > 1 && !used.has(name)) {
      throw new PlacementError(
        `Cannot use mesh axis '${name}': no axis of the model is placed over it. Place one, or remove it from the mesh`,
      );
    }
  }
}

function expertAxis(
  name: string,
  size: number,
  mesh: Mesh,
  request: Request | undefined,
): PlanAxis {
  const over = request?.over ?? [];
  const positions = positionsOver(mesh, over);
  const table = request?.table ?? contiguousTable(size, positions);
  const ids = table.flat().sort((a, b) => a - b);
  if (
    table.length !== positions || ids.length !== size ||
    ids.some((id, i) => id !== i)
  ) {
    throw new PlacementError(
      `Cannot place axis '${name}': its table must hold each of 0 to ${
        size - 1
      } once, in ${positions} lists. Correct the table`,
    );
  }
  return { size, over, table };
}

/** Contiguous ids per position, the first `size mod positions` one longer. */
export function contiguousTable(size: number, positions: number): number[][] {
  let next = 0;
  return blockSizes(size, positions).map((n) =>
    Array.from({ length: n }, () => next++)
  );
}

type Followed = Extract<PlanAxis["deal"], { readonly by: "items" }>;

/** Axes of inputs that pick rows of a placed axis, and lie where it does or are not placed: items go where those rows are. */
function followersOf(
  { nodes, axes }: Graph,
  requests: ReadonlyMap<string, Request>,
): Map<string, Followed> {
  const followers = new Map<string, Followed>();
  for (const node of nodes) {
    if (node.primitive !== "embedding") continue;
    const { over } = node.params;
    const ids = node.inputs[1]!;
    const [axis, second] = ids.axes;
    if (ids.primitive !== "input" || axis === undefined || second) continue;
    const where = requests.get(over)?.over.join();
    const own = requests.get(axis)?.over.join() ?? where;
    const placed = where !== undefined && axes[over]!.dynamic;
    if (!placed || own !== where || followers.has(over)) continue;
    if (followers.has(axis) || axis === over) continue;
    followers.set(axis, { by: "items", input: ids.params.name, of: over });
  }
  return followers;
}

/** Tokens of a sequence stay on one rank when the model has a cache, else those of a routing group. */
function dealOf(graph: Graph, axis: string): NonNullable<PlanAxis["deal"]> {
  const input = dealInput(graph, axis);
  return input === undefined ? { by: "blocks" } : { by: "sequence", input };
}

function quoteAll(names: readonly string[]): string {
  return names.length ? names.map((name) => `'${name}'`).join(", ") : "none";
}

/** The longest an axis can be on each rank. */
export function localBound(placed: Placed, axis: string): number[] {
  const { size, over, deal } = placed.axes[axis]!;
  if (!over || placed.expertAxes.has(axis) || deal?.by !== "blocks") {
    return new Array<number>(placed.ranks).fill(size);
  }
  const lengths = blockSizes(size, positionsOver(placed.mesh, over));
  if (lengths[0] === lengths.at(-1)) {
    return new Array<number>(placed.ranks).fill(lengths[0]!);
  }
  return groupRanks(placed.mesh, over).map((place) => lengths[place]!);
}

/** The most of an axis that the ranks of one exchange group can have together. */
export function groupBound(
  placed: Placed,
  axis: string,
  over: readonly string[],
): number {
  const { size, deal, over: axisOver } = placed.axes[axis]!;
  if (!axisOver || deal?.by !== "blocks") return size;
  const others = placed.mesh.map(({ name }) => name)
    .filter((name) => !over.includes(name));
  const groups = groupRanks(placed.mesh, others);
  const sums: number[] = [];
  for (const [rank, n] of localBound(placed, axis).entries()) {
    const group = groups[rank]!;
    sums[group] = (sums[group] ?? 0) + n;
  }
  return Math.min(size, sums.reduce((a, b) => Math.max(a, b)));
}

/** The run-time length of an axis on a rank, or over an exchange group, as the host knows it. */
export function axisSize(
  placed: Placed,
  axis: string,
  over?: readonly string[],
): Size {
  const { size, dynamic, over: axisOver } = placed.axes[axis]!;
  if (!dynamic) return size;
  const count = planAxis(placed, axis);
  return over && over.length && axisOver ? { count, over } : { count };
}
