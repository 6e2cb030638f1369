/** Shardings that are not possible: rejected with the position in the model. */

import { ModelError, PlacementError } from "../../spec/errors.ts";
import { groupSizeOf } from "../../spec/mesh.ts";
import type { Graph, Node } from "../graph/graph.ts";
import { updatedBy } from "../graph/in_place.ts";
import { segmentsOf } from "../../spec/numerics.ts";
import { usersOf } from "../graph/users.ts";
import { type AxisFacts, isRagged } from "./local_axes.ts";
import type { Over } from "../graph/sharding.ts";

/** Checks that axes of fixed length can be divided into equal parts. Throws PlacementError. */
export function checkSizes(
  { graph, mesh, requests, experts, ...facts }: AxisFacts,
): void {
  for (const [axis, { over, table }] of requests) {
    if (
      table || experts.has(axis) ||
      isRagged({ graph, mesh, requests, experts, ...facts }, axis)
    ) {
      continue;
    }
    const groupSize = groupSizeOf(mesh, over);
    const { size } = graph.axes[axis]!;
    if (size % groupSize === 0) continue;
    throw new PlacementError(
      `Cannot shard axis '${axis}' over '${
        over.join("+")
      }': its size, ${size}, is no multiple of ${groupSize}. ${
        remedy(over, divisors(size, groupSize))
      }`,
    );
  }
}

/**
 * The segments of a rank's sum for a contraction over a sharded axis. It has the bits of one rank only if ranks have
 * complete segments. Undefined for all other nodes. Throws PlacementError.
 */
export function segmentsOfRank(
  { graph, mesh }: AxisFacts,
  node: Node,
  over: Over,
  reduced: readonly string[],
): number | undefined {
  if (node.primitive !== "dot" || reduced.length === 0) return undefined;
  const sharded = node.params.over.filter((axis) => over[axis]?.length);
  const k = node.params.over.reduce((n, axis) => n * graph.axes[axis]!.size, 1);
  const groupSize = groupSizeOf(mesh, reduced);
  const segments = segmentsOf(k);
  const outermost = sharded.length === 1 && sharded[0] === node.params.over[0];
  if (outermost && segments % groupSize === 0) return segments / groupSize;
  const possible = Array.from({ length: segments }, (_, i) => i + 1)
    .filter((n) => segments % n === 0);
  throw new PlacementError(
    outermost
      ? `Cannot shard axis '${sharded[0]}' over '${
        reduced.join("+")
      }': a sum over ${k} elements has ${segments} segments, which ${groupSize} ranks cannot share evenly. ${
        remedy(reduced, possible)
      }`
      : `Cannot shard axis '${sharded.join(" ")}' over '${
        reduced.join("+")
      }': a contraction over '${
        node.params.over.join(" ")
      }' can be sharded along its first axis only. Place '${
        node.params.over[0]
      }' instead`,
  );
}

function divisors(size: number, below: number): number[] {
  return Array.from({ length: below }, (_, i) => i + 1)
    .filter((n) => size % n === 0);
}

function remedy(over: readonly string[], sizes: readonly number[]): string {
  const which = sizes.map((n) => `${over.join("+")}=${n}`).join(", ");
  return `Use ${which}, or change its placement`;
}

/** Checks reads of states, which are updated in place: a read before the write might otherwise see the new value. */
export function checkStates(graph: Graph): void {
  const users = usersOf(graph);
  for (const state of graph.nodes) {
    if (state.primitive !== "state") continue;
    const { name } = state.params;
    const dynamic = state.axes.find((axis) => graph.axes[axis]!.dynamic);
    if (dynamic !== undefined) {
      throw new ModelError(
        `Cannot keep state '${name}': the length of '${dynamic}' is known only at run time. Give the axis a fixed size`,
        state.span,
      );
    }
    const uses = new Set(users.get(state));
    const writes = [...uses].filter((user) =>
      isWrite(user) && user.inputs[0] === state
    );
    const again = writes.flatMap((write) =>
      (users.get(write) ?? []).filter((user) =>
        isWrite(user) && user.inputs[0] === write
      )
    );
    const second = writes[1] ?? again[0];
    if (second) {
      throw new ModelError(
        `Cannot write state '${name}' twice: it is updated in place. Use separate states for each attention`,
        second.span,
      );
    }
    const reader = [...uses].find((user) => !writes.includes(user)) ??
      Object.values(graph.outputs).find((output) => output === state);
    if (writes.length && reader) {
      throw new ModelError(
        `Cannot read state '${name}' before it is written: it is updated in place. Read the next value from attention`,
        reader.span,
      );
    }
  }
}

function isWrite(node: Node): boolean {
  return updatedBy(node) !== undefined;
}

/** Checks that experts with gathered parameters are placed in blocks of equal size. Throws PlacementError. */
export function checkEqualBlocks(
  { graph, mesh, requests }: AxisFacts,
  axis: string,
  over: readonly string[],
): void {
  const { size } = graph.axes[axis]!;
  const groupSize = groupSizeOf(mesh, over);
  if (size % groupSize === 0 && !requests.get(axis)?.table) return;
  throw new PlacementError(
    `Cannot gather parameters of axis '${axis}' over '${
      over.join("+")
    }': its ${size} items are not in ${groupSize} equal blocks. Place it so, or use another dispatcher`,
  );
}
