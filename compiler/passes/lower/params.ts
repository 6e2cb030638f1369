/** How parameters lie in memory: contracted axis outside, output axes inside, so that neighbouring outputs lie side by side. */

import { type FileDType, storedDType } from "../../../spec/dtype.ts";
import { ModelError, PlacementError } from "../../../spec/errors.ts";
import { groupRanks } from "../../../spec/mesh.ts";
import { type BufferAxis, perRank } from "../../../spec/plan.ts";
import {
  type Graph,
  isRouting,
  type Node,
  type NodeOf,
  valueInputs,
} from "../../graph/graph.ts";
import { FUSION_CLASS } from "../fuse.ts";
import { tensorOf } from "../../graph/stored.ts";
import { usersOf } from "../users.ts";
import type { Placed } from "../placed.ts";
import { isWhole, type Sharded } from "../sharded.ts";
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

/** Every node on dispatched rows, with the routing that put it there. */
export function dispatchedNodes(graph: Graph): Map<Node, Node> {
  const result = new Map<Node, Node>();
  for (const node of graph.nodes) {
    if (node.primitive === "dispatch") result.set(node, node.inputs[1]!);
    else if (node.primitive !== "combine" && node.primitive !== "collect") {
      const from = valueInputs(node).find((input) => result.has(input));
      const route = from && result.get(from)!;
      if (route && !sumsRows(node, route)) result.set(node, route);
    }
  }
  return result;
}

/** Whether a node sums rows of a dispatch, so that what it makes has none. */
function sumsRows(node: Node, route: Node): boolean {
  return node.primitive === "accumulate" && isRouting(route) &&
    node.params.over.includes(route.params.slot);
}

/** What lies by expert: nodes on dispatched rows, and others. */
export interface ByExpert {
  readonly dispatched: ReadonlyMap<Node, Node>;
  readonly sharded: Sharded;
}

/** Decide the layout of every parameter. `storedDTypes` gives the file's dtype by source tensor name. */
export function layoutParams(
  graph: Graph,
  placed: Placed,
  { dispatched, sharded }: ByExpert,
  storedDTypes: { readonly [tensor: string]: FileDType },
): Map<Node, ParamLayout> {
  const layouts = new Map<Node, ParamLayout>();
  const users = usersOf(graph);
  for (const node of graph.nodes) {
    if (node.primitive !== "param") continue;
    layouts.set(
      node,
      layoutParam(
        node,
        users.get(node) ?? [],
        placed,
        { dispatched, sharded },
        storedDTypes,
      ),
    );
  }
  return layouts;
}

/** The expert axis of a route node. */
function expertOf(route: Node | undefined): string | undefined {
  return isRouting(route) ? route.params.expert : undefined;
}

function layoutParam(
  node: NodeOf<"param">,
  users: readonly Node[],
  placed: Placed,
  { dispatched, sharded }: ByExpert,
  storedDTypes: { readonly [tensor: string]: FileDType },
): ParamLayout {
  const uses = new Set(users.map((user) => expertOf(dispatched.get(user))));
  const used = node.axes.find((axis) => uses.has(axis));
  // Where a rank has all experts in their order, its parameters are as anywhere else.
  const expert = used !== undefined && isWhole(placed, used) ? undefined : used;
  const elsewhere = users.some((user) =>
    expertOf(dispatched.get(user)) !== expert && !sharded.has(user)
  );
  if (expert !== undefined && elsewhere) {
    throw new PlacementError(
      `Cannot place parameter '${node.params.name}': it is used both on dispatched rows and elsewhere. Name two parameters`,
    );
  }
  const stored = storedDTypes[tensorOf(node)] ?? storedDType(node.dtype);
  const dot = users.find((user): user is NodeOf<"dot"> =>
    user.primitive === "dot" && user.inputs[1] === node
  );
  const viewed = users.some((user) => FUSION_CLASS[user.primitive] === "view");
  let axes = node.axes;
  if (dot && !viewed) {
    const shape = dotShape(dot);
    axes = [...shape.batch, ...shape.over, ...shape.columns];
  }
  if (stored === "mxfp4") checkBlocks(node, viewed ? undefined : dot, placed);
  const last = placed.axes[axes.at(-1) ?? ""]?.size ?? 1;
  const packed = stored === "f16" || stored === "bf16";
  return {
    axes,
    stored,
    ...(packed && !viewed && last % 4
      ? { rowStride: Math.ceil(last / 4) * 4 }
      : {}),
    ...(packed && viewed && last % 2 ? { splitsWords: true } : {}),
    ...(expert === undefined ? {} : { localExperts: expert }),
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
  const outer = ownPart(
    lowering,
    bufferAxes(lowering, batch),
    ownOfLayout(layout),
  );
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
        ...whole.map((axis) => placed.axes[axis]!.size),
        ...blocks.map(({ size }) => size),
      ],
      ...layout.localExperts
        ? { pick: { axis: layout.localExperts, stacked: false, placed: true } }
        : {},
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

/** The experts that each rank holds, or its items of another axis with a table, by global id in local order. */
export function expertsOfRanks(placed: Placed, axis: string): number[][] {
  const { over, table } = placed.axes[axis]!;
  return groupRanks(placed.mesh, over!).map((place) => [...table![place]!]);
}

/** The axes of a parameter of which its rank has a part. */
function ownOfLayout({ localExperts }: ParamLayout): readonly string[] {
  return localExperts === undefined ? [] : [localExperts];
}

/** The axes of a buffer that has only what its rank has of the axes `own`. */
export function ownPart(
  { placed }: Lowering,
  axes: readonly BufferAxis[],
  own: readonly string[],
): readonly BufferAxis[] {
  return axes.map((entry) => {
    const { axis } = entry;
    if (!own.includes(axis)) return entry;
    const { table } = placed.axes[axis]!;
    const [first] = table!;
    const even = table!.every((ids) => ids.length === first!.length);
    const size = even
      ? first!.length
      : perRank(expertsOfRanks(placed, axis).map((ids) => ids.length));
    return { axis, size };
  });
}

/** The axes of a node on no row of which its rank has a part. */
export function ownAxes(
  { sharded }: Pick<Lowering, "sharded">,
  node: Node,
): readonly string[] {
  return sharded.get(node) ?? [];
}

/** Add the buffer and the weight entry of a parameter. */
export function addParam(lowering: Lowering, node: NodeOf<"param">): void {
  const layout = lowering.layouts.get(node)!;
  const { stored } = layout;
  if (stored === "mxfp4") return addBlocks(lowering, node, layout);
  const { name, stack } = node.params;
  const { placed } = lowering;
  const axes = ownPart(
    lowering,
    bufferAxes(lowering, layout.axes),
    ownOfLayout(layout),
  );
  addBuffer(lowering, {
    name,
    kind: "weight",
    dtype: stored,
    axes,
    ...(layout.rowStride === undefined ? {} : { rowStride: layout.rowStride }),
  });
  lowering.storages.set(node, {
    buffer: name,
    dtype: stored,
    axes: layout.axes,
    ...(layout.rowStride === undefined ? {} : { rowStride: layout.rowStride }),
    ...(layout.localExperts ? { own: [layout.localExperts] } : {}),
  });
  const fileAxes = node.axes.filter((axis) => axis !== stack);
  const picked = stack ?? layout.localExperts;
  lowering.weights.push({
    buffer: name,
    source: name,
    stored,
    axes: fileAxes,
    shape: fileAxes.map((axis) => placed.axes[axis]!.size),
    ...(picked
      ? {
        pick: {
          axis: picked,
          stacked: picked === stack,
          placed: layout.localExperts !== undefined,
        },
      }
      : {}),
  });
}

/** What combines take, seen through views. */
export function returningNodes(graph: Graph): Set<Node> {
  const result = new Set<Node>();
  for (const node of graph.nodes) {
    if (node.primitive !== "combine" && node.primitive !== "collect") continue;
    let value = node.inputs[0]!;
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
