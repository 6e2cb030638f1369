/** All-gather of values with dynamic rows: concatenates the rows of the ranks of a group, on every rank. */

import { boundOf } from "../../../../spec/plan/bytes.ts";
import { STORED_BYTES, storedDType } from "../../../../spec/dtype.ts";
import { storedElementsOf } from "../../../../spec/layout.ts";
import { PlacementError } from "../../../../spec/errors.ts";
import {
  add,
  div,
  load,
  loadStored,
  mul,
  sub,
  u32,
} from "../../../../spec/kernel/build.ts";
import type { Expr } from "../../../../spec/kernel/tree.ts";
import type { Node, NodeOf } from "../../../graph/graph.ts";
import { groupSizeOf } from "../../../../spec/mesh.ts";
import { type BufferAxis, maxOverRanks } from "../../../../spec/plan/plan.ts";
import { planAxis } from "../../../sharding/lengths.ts";
import { groupRankBuffer } from "../routing/assign.ts";
import { type At, atWith, flatIndex } from "../indices.ts";
import {
  addAllGather,
  addScratch,
  fixedProduct,
  type Lowering,
  productOf,
  type Storage,
} from "../context.ts";
import { assignmentBuffer } from "../routing/assignment.ts";
import { rowMajorBuffer } from "../elementwise.ts";
import { emitValue, loadFrom, storeTo } from "../emit.ts";
import { writeAll } from "../index_space.ts";
import { KernelScope } from "../scope.ts";
import { markUnreduced, storageFor } from "../storage.ts";

/** Collectives. */
type Moving =
  | NodeOf<"allGather">
  | NodeOf<"allReduce">
  | NodeOf<"reduceScatter">;

/** Rows of every rank of a group, by group rank. */
export interface GatheredRows {
  readonly buffer: string;
  /** The axis of the rows, and the other axes in memory order. */
  readonly rows: string;
  readonly rest: readonly string[];
}

/** The dynamic row axis of a value. Undefined if its lengths are fixed. */
export function countedAxis(
  { placed, model: { dispatched } }: Lowering,
  node: Node,
): string | undefined {
  const counted = node.axes.filter((axis) => placed.axes[axis]?.dynamic);
  if (counted.length > 1 || dispatched.has(node)) {
    throw new PlacementError(
      `Cannot move '${
        node.axes.join(" ")
      }' between ranks: it has more than one axis whose length is known only at run time. Change the placement of its axes`,
    );
  }
  return counted[0];
}

/** Gathers the rows of a stored value over `over` in group rank order, along a new axis or `as`. */
export function gatherRowsOf(
  lowering: Lowering,
  node: Moving,
  rows: string,
  as?: string,
): GatheredRows {
  const [x] = node.inputs as [Node];
  const { over } = node.params;
  const { placed } = lowering;
  const rest = x.axes.filter((name) => name !== rows);
  const words = fixedProduct(lowering, node, rest);
  const dtype = storedDType(x.dtype);
  const buffer = addScratch(
    lowering,
    "gathered",
    dtype,
    [rowsOfRanks(lowering, rows, over, as), ...rest],
  );
  // Terms of a sum over other mesh axes stay terms.
  markUnreduced(lowering, node, buffer);
  const counts = assignmentBuffer(lowering, rows, { holds: "counts", over });
  addAllGather(lowering, node, {
    over,
    from: rowMajorBuffer(lowering, x, [rows, ...rest]),
    to: buffer,
    words,
    rows: { axis: planAxis(placed, rows), counts },
  });
  return { buffer, rows, rest };
}

/** The axis of the rows of all ranks in a group. */
function rowsOfRanks(
  { placed }: Lowering,
  rows: string,
  over: readonly string[],
  as = `${rows} by rank`,
): BufferAxis {
  const size = boundOf({ count: rows, over }, placed);
  const { dynamic = true } = placed.axes[as] ?? {};
  return { axis: planAxis(placed, as), size, ...dynamic ? { dynamic } : {} };
}

/** Exchanges terms: each rank receives the terms of its own rows from every rank of the group, by group rank. */
export function localRowsOf(
  lowering: Lowering,
  node: NodeOf<"reduceScatter">,
): GatheredRows {
  const [x] = node.inputs as [Node];
  const { over, axis, to } = node.params;
  const { placed } = lowering;
  const rest = x.axes.filter((name) => name !== axis);
  const words = fixedProduct(lowering, node, rest);
  const dtype = storedDType(x.dtype);
  const buffer = addScratch(lowering, "terms", dtype, [
    { axis: "groupRank", size: groupSizeOf(placed.mesh, over) },
    to,
    ...rest,
  ]);
  markUnreduced(lowering, node, buffer);
  addAllGather(lowering, node, {
    over,
    from: rowsByRank(lowering, node, rest),
    to: buffer,
    words,
    rows: {
      axis: planAxis(placed, to),
      counts: assignmentBuffer(lowering, to, { holds: "counts", over }),
    },
    blocks: { groupRank: groupRankBuffer(lowering, over) },
  });
  return { buffer, rows: to, rest };
}

/** The rows of a value in the order of their destination ranks. */
function rowsByRank(
  lowering: Lowering,
  node: NodeOf<"reduceScatter">,
  rest: readonly string[],
): string {
  const [x] = node.inputs as [Node];
  const { axis, to, over } = node.params;
  if (inOrder(lowering, to, axis)) {
    return rowMajorBuffer(lowering, x, [axis, ...rest]);
  }
  const dtype = storedDType(x.dtype);
  const packed: Storage = {
    buffer: addScratch(lowering, "by rank", dtype, [
      rowsOfRanks(lowering, to, over, `${axis} by rank`),
      ...rest,
    ]),
    dtype,
    axes: [axis, ...rest],
  };
  markUnreduced(lowering, x, packed.buffer);
  const order = assignmentBuffer(lowering, to, { holds: "rows" });
  const scope = new KernelScope(lowering);
  writeAll(scope, node, packed.axes, (at) => {
    const row = load(scope.read(order), at.get(axis), "u32");
    const there = atWith(at, axis, () => row);
    return [storeTo(scope, packed, there, emitValue(scope, x, at))];
  });
  return packed.buffer;
}

/** Whether the concatenated items of `part` are in the order of the global axis. */
function inOrder({ placed }: Lowering, part: string, of: string): boolean {
  const assignment = placed.axes[part]!.assignment!;
  if (placed.axes[of]!.assignment?.by === "group") return true;
  return assignment.by === "blocks" &&
    (assignment.within === undefined || placed.axes[of]!.over.length > 0 ||
      placed.axes[assignment.within]!.assignment!.by === "blocks");
}

/** The element of a group rank at an index, if all ranks have the same rows. */
export function loadTerm(
  scope: KernelScope,
  { buffer, rows, rest }: GatheredRows,
  groupRank: Expr,
  at: At,
): Expr {
  const index = flatIndex(scope, [rows, ...rest], at);
  const each = productOf(scope, [rows, ...rest]);
  const { dtype } = scope.lowering.draft.buffers.get(buffer)!;
  return loadStored(
    scope.read(buffer),
    dtype,
    add(mul(groupRank, each), index),
  );
}

/** Gathers an axis on every rank of a group. */
export function lowerAllGather(
  lowering: Lowering,
  node: NodeOf<"allGather">,
): void {
  const { axis, to } = node.params;
  const [x] = node.inputs as [Node];
  if (lowering.model.layouts.get(node)?.shards) {
    return gatherShards(lowering, node);
  }
  const rows = countedAxis(lowering, x)!;
  if (rows === axis) gatherRagged(lowering, node);
  else gatherColumns(lowering, node, rows, { axis, to });
}

/** Gathers a sharded parameter: concatenates the stored shards, and those of its scales, offsets and factors. */
function gatherShards(
  lowering: Lowering,
  node: NodeOf<"allGather">,
): void {
  const { over, to: first } = node.params;
  const { buffer, axes: [, ...rest], packed, ...stored } = lowering.values
    .storages.get(node.inputs[0]!)!;
  const gather = (from: string): string => {
    const shard = lowering.draft.buffers.get(from)!;
    const { dtype, axes: [, ...inner], bytes } = shard;
    // Shards are equal blocks.
    const exact = storedElementsOf(shard, 0) * STORED_BYTES[dtype];
    if (exact % 4 !== 0) {
      throw new PlacementError(
        `Cannot gather parameters over '${
          over.join("+")
        }': the ${exact} bytes of '${from}' on a rank are no whole words. Use fewer ranks, or another dispatcher`,
      );
    }
    const how = { ...stored, dtype };
    const to = addScratch(lowering, "gathered", how, [first, ...inner]);
    const words = maxOverRanks(bytes) / 4;
    addAllGather(lowering, node, { over, from, to, words });
    return to;
  };
  const to = gather(buffer);
  const scales = packed && packed.scales !== buffer
    ? gather(packed.scales)
    : to;
  lowering.values.storages.set(node, {
    ...stored,
    buffer: to,
    axes: [first, ...rest],
    ...packed
      ? {
        packed: {
          ...packed,
          scales,
          ...packed.offsets === undefined ? {} : {
            offsets: packed.offsets === packed.scales
              ? scales
              : gather(packed.offsets),
          },
          ...packed.factors === undefined
            ? {}
            : { factors: gather(packed.factors) },
        },
      }
      : {},
  });
}

/** Gathers parts of rows: each rank has some elements of every row. */
function gatherColumns(
  lowering: Lowering,
  node: NodeOf<"allGather">,
  rows: string,
  { axis, to }: { readonly axis: string; readonly to: string },
): void {
  const gathered = gatherRowsOf(lowering, node, rows);
  const each = lowering.placed.axes[axis]!.size;
  const storage = storageFor(lowering, node);
  const scope = new KernelScope(lowering);
  writeAll(scope, node, node.axes, (at) => {
    const i = scope.bindValue(at.get(to));
    const groupRank = scope.bindValue(div(i, u32(each)));
    const there = atWith(at, axis, () => sub(i, mul(groupRank, u32(each))));
    return [
      storeTo(scope, storage, at, loadTerm(scope, gathered, groupRank, there)),
    ];
  });
}

/** Gathers rows of every rank in the order of the global axis. */
function gatherRagged(lowering: Lowering, node: NodeOf<"allGather">): void {
  const { axis, to } = node.params;
  const [x] = node.inputs as [Node];
  const ordered = inOrder(lowering, axis, to);
  const rest = x.axes.filter((name) => name !== axis);
  const as = ordered ? to : undefined;
  const { buffer } = gatherRowsOf(lowering, node, axis, as);
  const { dtype } = lowering.draft.buffers.get(buffer)!;
  const raw: Storage = { buffer, dtype, axes: [to, ...rest] };
  if (ordered) {
    lowering.values.storages.set(node, raw);
    return;
  }
  const replicated: Storage = {
    ...raw,
    buffer: addScratch(lowering, "replicated", dtype, raw.axes),
  };
  markUnreduced(lowering, node, replicated.buffer);
  const order = assignmentBuffer(lowering, axis, { holds: "rows" });
  const scope = new KernelScope(lowering);
  writeAll(scope, node, replicated.axes, (at) => {
    const row = load(scope.read(order), at.get(to), "u32");
    const there = atWith(at, to, () => row);
    return [storeTo(scope, replicated, at, loadFrom(scope, raw, there))];
  });
  lowering.values.storages.set(node, replicated);
}
