/**
 * Buckets: one collective moves many values in one buffer, divided into a block per group rank. A block contains the
 * values one after another, each with the items of its axis that the group rank owns.
 */

import { groupSizeOf } from "../../../../spec/mesh.ts";
import { add, load, mul, store, u32 } from "../../../../spec/kernel/build.ts";
import type { Node, NodeOf } from "../../../graph/graph.ts";
import { addParts } from "../../../kernels/add_parts.ts";
import { elementwiseGrid } from "../../../../spec/kernel/elementwise.ts";
import type { Bucket } from "../../buckets.ts";
import { type Fusion, FUSION_CLASS } from "../../fuse.ts";
import { usersOf } from "../../../graph/users.ts";
import {
  about,
  addKernel,
  addScratch,
  amendBuffer,
  type Lowering,
  type Storage,
  unreducedOf,
} from "../context.ts";
import { copyTo } from "../elementwise.ts";
import { groupRankBuffer } from "../routing/assign.ts";
import { KernelScope } from "../scope.ts";
import { markUnreduced } from "../storage.ts";

type Member = NodeOf<"reduceScatter"> | NodeOf<"allGather">;

/** Layout of a bucket. */
interface Layout {
  readonly members: readonly Member[];
  readonly over: readonly string[];
  /** Elements of a block. */
  readonly words: number;
  /** Offset of each member in a block. */
  readonly offsets: readonly number[];
}

function layoutOf(lowering: Lowering, { members }: Bucket): Layout {
  const [first] = members as [Member];
  let words = 0;
  const offsets = members.map((member) => {
    const offset = words;
    const part = partOf(member as Member);
    words += part.axes.reduce(
      (n, axis) => n * lowering.placed.axes[axis]!.size,
      1,
    );
    return offset;
  });
  const { over } = first.params;
  return { members: members as readonly Member[], over, words, offsets };
}

/** The sharded value of a bucket member: its operand, or the result of a reduce-scatter. */
function partOf(member: Member): Node {
  return member.primitive === "reduceScatter" ? member : member.inputs[0]!;
}

/** The location of the rank's shard of a member in the buffer of its block. */
function localStorage(
  { members, offsets }: Layout,
  i: number,
  buffer: string,
): Storage {
  const part = partOf(members[i]!);
  return {
    buffer,
    dtype: "f32",
    axes: part.axes,
    bucket: { offset: offsets[i]! },
  };
}

/** The location of all of a member in the buffer of all blocks. */
function gatheredStorage(
  lowering: Lowering,
  { members, offsets, words }: Layout,
  i: number,
  buffer: string,
): Storage {
  const member = members[i]!;
  const scatters = member.primitive === "reduceScatter";
  const all = scatters ? member.inputs[0]! : member;
  const { axis, to } = member.params;
  const [sharded, local] = scatters ? [axis, to] : [to, axis];
  return {
    buffer,
    dtype: "f32",
    axes: all.axes,
    bucket: {
      offset: offsets[i]!,
      blocks: {
        axis: sharded,
        each: lowering.placed.axes[local]!.size,
        stride: words,
      },
    },
  };
}

/** The send buffer of a bucket. */
function sendBuffer(lowering: Lowering, layout: Layout): string {
  const { members: [first], over, words } = layout;
  const block = { axis: "element of a block", size: words };
  const writers = layout.members.length;
  if (first!.primitive === "allGather") {
    const buffer = addScratch(lowering, "block", "f32", [block]);
    return amendBuffer(lowering, buffer, { writers });
  }
  const groupSize = groupSizeOf(lowering.placed.mesh, over);
  const buffer = addScratch(lowering, "bucket", "f32", [
    { axis: "groupRank", size: groupSize },
    block,
  ]);
  const unreduced = unreducedOf(first!.inputs[0]!);
  return amendBuffer(lowering, buffer, { unreduced, writers });
}

function storageIn(
  lowering: Lowering,
  layout: Layout,
  i: number,
  buffer: string,
): Storage {
  return layout.members[i]!.primitive === "allGather"
    ? localStorage(layout, i, buffer)
    : gatheredStorage(lowering, layout, i, buffer);
}

/** Assigns bucket offsets to values that are computed directly in the send buffer, before lowering starts. */
export function assignBuckets(lowering: Lowering): void {
  const { model: { graph, fusion }, values: { bucketStorage } } = lowering;
  const users = usersOf(graph);
  const named = new Set([
    ...Object.values(graph.outputs),
    ...Object.values(graph.states),
  ]);
  for (const bucket of new Set(lowering.model.buckets.values())) {
    const layout = layoutOf(lowering, bucket);
    const taken = bucket.members.map(({ inputs }) => inputs[0]!);
    const direct = (x: Node) =>
      DIRECT.includes(x.primitive) && fusion.stored.has(x) && !named.has(x) &&
      // A step that reads a bucket follows all writes to it.
      users.get(x)!.every((user) => lowering.model.buckets.has(user)) &&
      !bucketStorage.has(x) && !reads(fusion, x, new Set(taken));
    const chosen = taken.map(direct);
    if (!chosen.includes(true)) continue;
    const buffer = sendBuffer(lowering, layout);
    taken.forEach((x, i) => {
      if (!chosen[i] || bucketStorage.has(x)) return;
      bucketStorage.set(x, storageIn(lowering, layout, i, buffer));
    });
  }
}

/** Primitives whose kernels can write to any location. */
const DIRECT: readonly string[] = ["map", "cast", "reduceSum"];

/** Whether the computation of a value reads one of `others`. */
function reads(
  fusion: Fusion,
  x: Node,
  others: ReadonlySet<Node>,
): boolean {
  return x.inputs.some((input) => {
    if (others.has(input)) return true;
    const kind = FUSION_CLASS[input.primitive];
    const inside = kind === "view" || kind === "element" ||
      fusion.absorbed.has(input) ||
      kind === "inline" && !fusion.stored.has(input);
    return inside && reads(fusion, input, others);
  });
}

/** Exchanges a bucket. */
export function lowerBucket(lowering: Lowering, bucket: Bucket): void {
  const layout = layoutOf(lowering, bucket);
  const { members, over, words } = layout;
  const groupSize = groupSizeOf(lowering.placed.mesh, over);
  const scatters = members[0]!.primitive === "reduceScatter";
  const from = packed(lowering, layout);
  const to = addScratch(lowering, scatters ? "parts" : "gathered", "f32", [
    { axis: "groupRank", size: groupSize },
    { axis: "element of a block", size: words },
  ]);
  markUnreduced(lowering, members[0]!, to);
  const groupRank = scatters ? groupRankBuffer(lowering, over) : undefined;
  lowering.draft.steps.push({
    op: "allGather",
    ranks: lowering.progress.ranks,
    over,
    from,
    to,
    bytes: words * 4,
    ...groupRank === undefined ? {} : { blocks: { groupRank } },
    ...aboutBucket(lowering, layout),
  });
  if (!scatters) {
    members.forEach((member, i) =>
      lowering.values.storages.set(
        member,
        gatheredStorage(lowering, layout, i, to),
      )
    );
    return;
  }
  const block = addScratch(lowering, "block", "f32", [
    { axis: "element of a block", size: words },
  ]);
  markUnreduced(lowering, members[0]!, block);
  const scope = new KernelScope(lowering);
  const [parts, sum] = [scope.read(to), scope.write(block)];
  const kernel = addParts({
    name: `add_blocks_${groupSize}`,
    count: u32(words),
    parts: groupSize,
    bindings: scope.bindings,
    load: (i, k) => load(parts, add(mul(k, u32(words)), i)),
    epilogue: (i, value) => [store(sum, i, value)],
  });
  lowering.draft.steps.push({
    op: "launch",
    ranks: lowering.progress.ranks,
    bindings: scope.buffers,
    kernel: addKernel(lowering, kernel),
    workgroups: elementwiseGrid(words),
    ...aboutBucket(lowering, layout),
  });
  members.forEach((member, i) =>
    lowering.values.storages.set(member, localStorage(layout, i, block))
  );
}

/** The buffer with the data of a bucket: the buffer it was computed in, or a copy. */
function packed(lowering: Lowering, layout: Layout): string {
  const taken = layout.members.map(({ inputs }) => inputs[0]!);
  const found = taken.map((x) => lowering.values.storages.get(x)!);
  const placed = found.find((_, i) =>
    lowering.values.bucketStorage.has(taken[i]!)
  );
  const isAt = (i: number, buffer: string) =>
    JSON.stringify(found[i]) ===
      JSON.stringify(storageIn(lowering, layout, i, buffer));
  // Scattered values are gathered in their stored layout if the buffer contains nothing else.
  const [{ buffer: first }] = found as [Storage];
  const alone = lowering.draft.buffers.get(first)!.bytes === layout.words * 4;
  if (alone && taken.every((_, i) => isAt(i, first))) return first;
  const buffer = placed?.buffer ?? sendBuffer(lowering, layout);
  taken.forEach((x, i) => {
    if (isAt(i, buffer)) return;
    copyTo(lowering, x, storageIn(lowering, layout, i, buffer));
  });
  return buffer;
}

/** `reduceScatter of 12 values` */
function aboutBucket(
  lowering: Lowering,
  { members }: Layout,
): ReturnType<typeof about> {
  const [first] = members as [Member];
  const one = about(lowering, first);
  if (members.length === 1) return one;
  const { primitive, params } = first;
  const over = params.over.join("+");
  const { phase } = lowering.progress;
  return {
    label: `${primitive} over ${over} of ${members.length} values`,
    ...phase ? { phase } : {},
  };
}
