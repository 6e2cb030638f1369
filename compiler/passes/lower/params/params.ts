/**
 * Memory layout of parameters: contracted axes outermost and output axes innermost, so that neighbouring outputs are
 * adjacent.
 */

import type { Activations } from "../../../../spec/weights/activations.ts";
import { type FileDType, isHalf, storedDType } from "../../../../spec/dtype.ts";
import type { Graph, Node, NodeOf } from "../../../graph/graph.ts";
import type { BlockName } from "../../../../spec/weights/blocks.ts";
import {
  isBlockDType,
  isPackedDType,
  type PackedDType,
  packingOf,
  PACKINGS,
  repackedDTypes,
  wordsDType,
} from "../../../../spec/weights/packed.ts";
import { encodedBytes } from "../../../../spec/weights/encoding.ts";
import { type DotShape, dotShape } from "../matmul/dot_shape.ts";
import {
  addPacked,
  inGroups,
  inWholeGroups,
  packedAxis,
  takesQ8,
} from "./packed.ts";
import { FUSION_CLASS } from "../../fuse.ts";
import { EXACT, segmentsOf } from "../../../../spec/numerics.ts";
import { readsAlongK } from "../../../tuning/tile.ts";
import { tensorOf } from "../../../graph/stored.ts";
import { usersOf } from "../../../graph/users.ts";
import { viewedAxis } from "./viewed.ts";
import type { Placed } from "../../../sharding/placed.ts";
import { addBuffer, type Lowering } from "../context.ts";
import type { ParamLayout } from "../../param_layout.ts";

/** Layout options, and the dtypes that may keep the layout of their files. */
export interface LayoutOptions {
  /** File dtype by source tensor name. Default: the dtype of the parameter. */
  readonly stored: { readonly [tensor: string]: FileDType };
  /** Dtypes that may keep the layout of their file. */
  readonly asFiled: readonly FileDType[];
  /** Of products with weights whose elements are integers. */
  readonly activations: Activations;
}

/** Decides the layout of every parameter. */
export function layoutParams(
  graph: Graph,
  placed: Placed,
  options: LayoutOptions,
): Map<Node, ParamLayout> {
  const layouts = new Map<Node, ParamLayout>();
  const users = usersOf(graph);
  for (const node of graph.nodes) {
    const used = users.get(node) ?? [];
    if (node.primitive === "param") {
      const gathers = used.filter((user) => gathersExperts(user, placed));
      const readers = gathers.flatMap((gather) => users.get(gather) ?? []);
      const read = gathers.length > 0 ? readers : used;
      layouts.set(
        node,
        layoutParam(node, { users: read, all: users }, placed, options),
      );
    } else if (isGathered(node)) {
      const shard = layouts.get(node.inputs[0]!)!;
      const [first, ...rest] = shard.axes;
      const { axis, to } = node.params;
      // The padding after the last row of a shard would be between rows.
      const shards = first === axis && !shard.splitsWords &&
        (rest.length > 0 || shard.rowStride === undefined);
      if (shards && gathersExperts(node, placed)) {
        layouts.set(node, { ...shard, axes: [to, ...rest], shards });
      } else if (node.phase === undefined) {
        const dot = contractionWith(node, used);
        const axes = dot ? rightAxes(dotShape(dot)) : node.axes;
        layouts.set(node, { axes, stored: "f32" });
      }
    }
  }
  return layouts;
}

/**
 * Returns the axis order of next values of parameters: that of the parameter's memory layout. 16-bit parameters have
 * none: their next values are packed later.
 */
export function nextAxesOf(
  { states }: Graph,
  layouts: ReadonlyMap<Node, ParamLayout>,
): Map<Node, readonly string[]> {
  const nameOf = new Map<Node, string>();
  for (const [name, next] of Object.entries(states)) {
    if (!nameOf.has(next)) nameOf.set(next, name);
  }
  const layoutOf = new Map<string, ParamLayout>();
  for (const [leaf, layout] of layouts) {
    if (leaf.primitive !== "param" || layoutOf.has(leaf.params.name)) continue;
    layoutOf.set(leaf.params.name, layout);
  }
  const found = new Map<Node, readonly string[]>();
  for (const [next, name] of nameOf) {
    const layout = layoutOf.get(name);
    if (layout && !isHalf(layout.stored)) found.set(next, layout.axes);
  }
  return found;
}

/** Whether a node all-gathers a sharded parameter. */
export function isGathered(node: Node): node is NodeOf<"allGather"> {
  return node.primitive === "allGather" &&
    node.inputs[0]!.primitive === "param";
}

/** Whether a node all-gathers the experts of a parameter. */
function gathersExperts(node: Node, placed: Placed): boolean {
  return isGathered(node) && placed.axes[node.params.to]!.experts === true;
}

/** The first contraction with a parameter on its right, directly or gathered. */
function contractionWith(
  node: Node,
  users: readonly Node[],
): NodeOf<"dot"> | undefined {
  return users.find((user): user is NodeOf<"dot"> => {
    const right = user.inputs[1];
    return user.primitive === "dot" &&
      (right === node || isGathered(right!) && right!.inputs[0] === node);
  });
}

/** The axis along which elements of a parameter may share words: that of its rows, if it is only a table of rows. */
function rowAxis(node: Node, users: readonly Node[]): readonly string[] {
  const isTable = users.length > 0 &&
    users.every((user) =>
      user.primitive === "embedding" && user.inputs[0] === node &&
      user.params.over !== node.axes.at(-1)
    );
  return isTable ? node.axes.slice(-1) : [];
}

/** The axis order in which the tiled kernel reads a right operand. */
export function rightAxes({ batch, over, columns }: DotShape): string[] {
  return [...batch, ...over, ...columns];
}

/** The other supported order, that of most files. */
export function filedAxes({ batch, over, columns }: DotShape): string[] {
  return [...batch, ...columns, ...over];
}

/**
 * Whether the tiled kernel can read the right operand of a dot in the layout of its file. Packed operands have the
 * contracted axis last.
 */
function isFiled(
  dot: NodeOf<"dot">,
  stored: FileDType,
  placed: Placed,
): boolean {
  const inside = isPackedDType(stored) ||
    filedAxes(dotShape(dot)).join() === dot.inputs[1]!.axes.join();
  return inside && readsAlongK(stored, sumOf(dot, placed));
}

/** The sum of a dot: its products, its segments, and the products of a segment. */
function sumOf(
  { params: { over, segments } }: NodeOf<"dot">,
  placed: Placed,
): { readonly k: number; readonly segments: number; readonly segment: number } {
  const k = over.reduce((n, axis) => n * (placed.axes[axis]?.size ?? 1), 1);
  const count = segments ?? segmentsOf(k);
  return { k, segments: count, segment: k / count };
}

/**
 * Repacked weights of at most this multiple of their bytes in the file replace blocks if f32 sums have blocks that begin
 * within those of the file, because kernels then load these in single words.
 */
const MAX_REPACKED = 1.1;

/** The encoding of a parameter in blocks: as in the file, in words, or repacked; else f32. */
function blocksAs(
  node: NodeOf<"param">,
  { dot, over }: {
    readonly dot: NodeOf<"dot"> | undefined;
    readonly over: readonly string[];
  },
  { placed, options, stored }: {
    readonly placed: Placed;
    readonly options: LayoutOptions;
    readonly stored: BlockName;
  },
): FileDType {
  const columns = placed.axes[node.axes.at(-1)!]!.total;
  const words = wordsDType(stored, columns);
  const repacked = repackedDTypes(stored, columns)[0] ?? "f32";
  const axis = placed.axes[over[0] ?? ""];
  const read = dot?.inputs[1] ?? node;
  const all = read.axes.reduce((n, name) => n * placed.axes[name]!.size, 1);
  const reads = (dtype: PackedDType, isRead: boolean) => {
    const { elements, bytes } = PACKINGS[dtype].block!;
    // Kernels have addresses of 32 bits.
    return isRead && axis !== undefined && inGroups(placed, axis, elements) &&
      all / elements * bytes < 2 ** 32 &&
      (dot === undefined || options.activations === "f32" ||
        takesQ8(over, { placed, stored: dtype }));
  };
  const bytesOf = (name: FileDType) =>
    encodedBytes({ name }, { rows: 1, columns });
  const isSmall = bytesOf(repacked) <= MAX_REPACKED * bytesOf(stored);
  const filed = options.asFiled.includes(stored) &&
    (dot === undefined ||
      isFiled(dot, stored, placed) &&
        (options.activations === "q8" || !isSmall ||
          sumOf(dot, placed).segment % EXACT.block === 0));
  return reads(stored, filed)
    ? stored
    : words !== undefined && reads(words, true)
    ? words
    : repacked;
}

function layoutParam(
  node: NodeOf<"param">,
  { users, all }: {
    /** What reads it, directly or gathered. */
    readonly users: readonly Node[];
    /** The users of all nodes. */
    readonly all: ReadonlyMap<Node, readonly Node[]>;
  },
  placed: Placed,
  options: LayoutOptions,
): ParamLayout {
  const found = options.stored[tensorOf(node)] ?? storedDType(node.dtype);
  const dot = contractionWith(node, users);
  const right = dot?.inputs[1];
  const viewed = users.some((user) => FUSION_CLASS[user.primitive] === "view");
  const isRead = right === node || right && gathersExperts(right, placed);
  const known = viewed || !isRead ? undefined : dot;
  const over = known?.params.over ??
    (viewed
      ? viewedAxis(node, {
        stored: options.asFiled.find((dtype) => dtype === found),
        users: all,
        placed,
      })
      : rowAxis(node, users));
  const named = inWholeGroups(
    isBlockDType(found)
      ? blocksAs(node, { dot: known, over }, { placed, options, stored: found })
      : found,
    over,
    placed,
  );
  const q8 = isPackedDType(named) && options.activations === "q8" &&
    known !== undefined && takesQ8(over, { placed, stored: named });
  const along = isPackedDType(named)
    ? packedAxis(node, over, {
      placed,
      stored: named,
      q8,
      decodes: isBlockDType(found) || packingOf(named)?.file === undefined,
    })
    : undefined;
  // Encodings that no kernel decodes are decoded on load.
  const stored = isPackedDType(named) && along === undefined ? "f32" : named;
  const filed = options.asFiled.includes(stored) && dot !== undefined &&
    !viewed &&
    isFiled(dot, stored, placed);
  // A gathered parameter has another expert axis name than its shards.
  const axes = dot && !viewed
    ? (filed ? filedAxes : rightAxes)(dotShape(dot))
      .map((axis) => node.axes[right!.axes.indexOf(axis)]!)
    : node.axes;
  const last = placed.axes[axes.at(-1) ?? ""]?.size ?? 1;
  const half = isHalf(stored);
  return {
    axes,
    stored,
    ...along === undefined ? {} : { along },
    ...filed ? { filed } : {},
    ...q8 ? { q8 } : {},
    ...(half && !viewed && last % 4
      ? { rowStride: Math.ceil(last / 4) * 4 }
      : {}),
    ...(half && viewed && last % 2 ? { splitsWords: true } : {}),
  };
}

/** Adds the buffer and the weight entry of a parameter. */
export function addParam(lowering: Lowering, node: NodeOf<"param">): void {
  const layout = lowering.model.layouts.get(node)!;
  const { axes, stored, along, filed = false, q8 = false } = layout;
  if (isPackedDType(stored)) {
    return addPacked(lowering, node, {
      axes,
      stored,
      along: along!,
      filed,
      q8,
    });
  }
  const { name, stack } = node.params;
  const { placed } = lowering;
  const padded = layout.rowStride === undefined
    ? {}
    : { rowStride: layout.rowStride };
  addBuffer(lowering, {
    name,
    kind: "weight",
    dtype: stored,
    axes,
    ...padded,
  });
  lowering.values.storages.set(node, {
    buffer: name,
    dtype: stored,
    axes,
    ...padded,
  });
  // The stacked axis is the first, under its local name.
  const fileAxes = stack === undefined ? node.axes : node.axes.slice(1);
  lowering.draft.weights.push({
    buffer: name,
    source: name,
    stored,
    axes: fileAxes,
    shape: fileAxes.map((axis) => placed.axes[axis]!.total),
    ...stack === undefined ? {} : { stack: node.axes[0]! },
  });
}

/** Returned rows, through views. */
export function returningNodes(graph: Graph): Set<Node> {
  const result = new Set<Node>();
  for (const node of graph.nodes) {
    const [returned] = node.inputs;
    const returns = node.primitive === "combine" ||
      node.primitive === "combineTranspose" ||
      node.primitive === "localCombine" ||
      node.primitive === "allToAll" && node.params.direction === "back";
    if (
      !returns || returned!.primitive === "allToAll" ||
      returned!.primitive === "moveRows"
    ) continue;
    let value: Node = returned!;
    result.add(value);
    while (
      value.primitive === "rename" || value.primitive === "split" ||
      value.primitive === "merge" || value.primitive === "optimizationBarrier"
    ) {
      value = value.inputs[0]!;
      result.add(value);
    }
  }
  return result;
}
