/** How parameters lie in memory: contracted axis outside, output axes inside, so that neighbouring outputs lie side by side. */

import { type FileDType, storedDType } from "../../../spec/dtype.ts";
import { ModelError } from "../../../spec/errors.ts";
import type { Graph, Node, NodeOf } from "../../graph/graph.ts";
import { FUSION_CLASS } from "../fuse.ts";
import { segmentsOf } from "../../../spec/numerics.ts";
import { readsAlongK } from "../../kernels/matmul_tile.ts";
import { tensorOf } from "../../graph/stored.ts";
import { usersOf } from "../../graph/users.ts";
import type { Placed } from "../../sharding/placed.ts";
import { addBuffer, bufferAxes, type Lowering } from "./context.ts";
import type { ParamLayout } from "../param_layout.ts";

/** The axes of a dot by what they do. */
export interface DotShape {
  /** On both operands and the result. */
  readonly batch: readonly string[];
  readonly over: readonly string[];
  /** The left operand's other axes. */
  readonly rows: readonly string[];
  /** The right operand's other axes. */
  readonly columns: readonly string[];
}

/** Sort the axes of a dot. */
export function dotShape(node: NodeOf<"dot">): DotShape {
  const [left, right] = node.inputs as [Node, Node];
  const { over } = node.params;
  const batch = left.axes.filter((axis) =>
    right.axes.includes(axis) && !over.includes(axis)
  );
  return {
    batch,
    over,
    rows: left.axes.filter((axis) => !right.axes.includes(axis)),
    columns: right.axes.filter((axis) => !left.axes.includes(axis)),
  };
}

/** How parameters are stored, and which may lie as in their files. */
export interface LayoutOptions {
  /** The file's dtype by source tensor name. Default: the parameter's own. */
  readonly stored: { readonly [tensor: string]: FileDType };
  /** What may lie as in its file. */
  readonly asFiled: readonly FileDType[];
}

/** Decide the layout of every parameter. */
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
      layouts.set(node, layoutParam(node, used, placed, options));
    } else if (isGathered(node) && node.phase === undefined) {
      const dot = contractionWith(node, used);
      const axes = dot ? rightAxes(dotShape(dot)) : node.axes;
      layouts.set(node, { axes, stored: "f32" });
    }
  }
  return layouts;
}

/** Whether a node is a parameter, of which ranks have parts, on every rank. */
export function isGathered({ primitive, inputs: [from] }: Node): boolean {
  return primitive === "allGather" && from!.primitive === "param";
}

/** The first contraction that has a value on its right. */
function contractionWith(
  node: Node,
  users: readonly Node[],
): NodeOf<"dot"> | undefined {
  return users.find((user): user is NodeOf<"dot"> =>
    user.primitive === "dot" && user.inputs[1] === node
  );
}

/** The order in which the tiled kernel reads a right operand. */
export function rightAxes({ batch, over, columns }: DotShape): string[] {
  return [...batch, ...over, ...columns];
}

/** The other order that it can read, which is that of most files. */
export function filedAxes({ batch, over, columns }: DotShape): string[] {
  return [...batch, ...columns, ...over];
}

/** Whether the tiled kernel can read the right operand of a dot as it lies in its file. */
function isFiled(
  dot: NodeOf<"dot">,
  stored: FileDType,
  placed: Placed,
): boolean {
  const { over, segments } = dot.params;
  const k = over.reduce((n, axis) => n * (placed.axes[axis]?.size ?? 1), 1);
  return filedAxes(dotShape(dot)).join() === dot.inputs[1]!.axes.join() &&
    readsAlongK(stored, { k, segments: segments ?? segmentsOf(k) });
}

function layoutParam(
  node: NodeOf<"param">,
  users: readonly Node[],
  placed: Placed,
  options: LayoutOptions,
): ParamLayout {
  const stored = options.stored[tensorOf(node)] ?? storedDType(node.dtype);
  const dot = contractionWith(node, users);
  const viewed = users.some((user) => FUSION_CLASS[user.primitive] === "view");
  const filed = options.asFiled.includes(stored) && dot !== undefined &&
    !viewed &&
    isFiled(dot, stored, placed);
  const axes = dot && !viewed && !filed ? rightAxes(dotShape(dot)) : node.axes;
  if (stored === "mxfp4") checkBlocks(node, viewed ? undefined : dot, placed);
  const last = placed.axes[axes.at(-1) ?? ""]?.size ?? 1;
  const packed = stored === "f16" || stored === "bf16";
  return {
    axes,
    stored,
    ...filed ? { filed } : {},
    ...(packed && !viewed && last % 4
      ? { rowStride: Math.ceil(last / 4) * 4 }
      : {}),
    ...(packed && viewed && last % 2 ? { splitsWords: true } : {}),
  };
}

/** Elements of an MXFP4 block, and of a word of it. */
const BLOCK = 32;
const PER_WORD = 8;

/** MXFP4 parameters are unpacked by the matmul kernel, block by block along the contracted axis. */
function checkBlocks(
  node: NodeOf<"param">,
  dot: NodeOf<"dot"> | undefined,
  placed: Placed,
): void {
  const over = dot?.params.over ?? [];
  const length = placed.axes[over[0] ?? ""]?.size ?? 1;
  if (
    over.length === 1 && length % BLOCK === 0 &&
    node.params.stack === undefined
  ) return;
  throw new ModelError(
    `Cannot use parameter '${node.params.name}' stored as MXFP4: it must be the right operand of a contraction over one axis of a multiple of ${BLOCK}. Store it in 16 bits`,
    node.span,
  );
}

/**
 * The buffers of an MXFP4 parameter: words of eight elements along the contracted axis, and one scale for each 32. In
 * the file that axis is the last.
 */
function addBlocks(
  lowering: Lowering,
  node: NodeOf<"param">,
  layout: ParamLayout,
): void {
  const { name } = node.params;
  const { placed } = lowering;
  const dot = usersOf(lowering.graph).get(node)!.find((user) =>
    user.primitive === "dot"
  ) as NodeOf<"dot">;
  const { batch, over, columns } = dotShape(dot);
  const length = placed.axes[over[0]!]!.size;
  const block = { axis: `${over[0]}_block`, size: length / BLOCK };
  const word = { axis: `${over[0]}_word`, size: BLOCK / PER_WORD };
  for (const { axis, size } of [block, word]) {
    lowering.blockAxes.set(axis, { size });
  }
  const outer = bufferAxes(lowering, batch);
  const add = (
    buffer: string,
    blocks: readonly { readonly axis: string; readonly size: number }[],
  ) => {
    addBuffer(lowering, {
      ...{ name: buffer, kind: "weight", dtype: "u32" },
      axes: [...outer, ...blocks, ...bufferAxes(lowering, columns)],
    });
    const whole = [...batch, ...columns];
    lowering.weights.push({
      ...{ buffer, source: buffer, stored: "u32" },
      axes: [...whole, ...blocks.map(({ axis }) => axis)],
      shape: [
        ...whole.map((axis) => placed.axes[axis]!.total),
        ...blocks.map(({ size }) => size),
      ],
    });
    return buffer;
  };
  lowering.storages.set(node, {
    buffer: add(`${name}_blocks`, [block, word]),
    scales: add(`${name}_scales`, [block]),
    dtype: "u32",
    axes: layout.axes,
  });
}

/** Add the buffer and the weight entry of a parameter. */
export function addParam(lowering: Lowering, node: NodeOf<"param">): void {
  const layout = lowering.layouts.get(node)!;
  const { stored } = layout;
  if (stored === "mxfp4") return addBlocks(lowering, node, layout);
  const { name, stack } = node.params;
  const { placed } = lowering;
  const padded = layout.rowStride === undefined
    ? {}
    : { rowStride: layout.rowStride };
  addBuffer(lowering, {
    ...{ name, kind: "weight", dtype: stored },
    axes: bufferAxes(lowering, layout.axes),
    ...padded,
  });
  lowering.storages.set(node, {
    ...{ buffer: name, dtype: stored, axes: layout.axes },
    ...padded,
  });
  // The stacked axis is the first one, under the name that the rank has it by.
  const fileAxes = stack === undefined ? node.axes : node.axes.slice(1);
  lowering.weights.push({
    ...{ buffer: name, source: name, stored },
    axes: fileAxes,
    shape: fileAxes.map((axis) => placed.axes[axis]!.total),
    ...stack === undefined ? {} : { stack: node.axes[0]! },
  });
}

/** Rows that are returned, seen through views. */
export function returningNodes(graph: Graph): Set<Node> {
  const result = new Set<Node>();
  for (const node of graph.nodes) {
    const [returned] = node.inputs;
    const returns = node.primitive === "combine" ||
      node.primitive === "collect" || node.primitive === "localCombine" ||
      node.primitive === "allToAll" && node.params.direction === "back";
    if (!returns || returned!.primitive === "allToAll") continue;
    let value: Node = returned!;
    result.add(value);
    while (
      value.primitive === "rename" || value.primitive === "split" ||
      value.primitive === "merge" || value.primitive === "again"
    ) {
      value = value.inputs[0]!;
      result.add(value);
    }
  }
  return result;
}
