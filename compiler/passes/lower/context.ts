/** State of lowering: buffers, kernels, steps, and the storage of each node's value. */

import { isCollective } from "../../graph/collectives.ts";
import { cachedWith } from "../../../spec/bounded_cache.ts";
import { blockOfAxis, isWithin } from "../../../spec/axis_name.ts";
import type { StoredDType } from "../../../spec/dtype.ts";
import { storedBytes } from "../../../spec/layout.ts";
import { invariant, ModelError } from "../../../spec/errors.ts";
import { groupRanks, type RankSet, stageAxis } from "../../../spec/mesh.ts";
import { dataPerRank } from "../../../spec/per_rank.ts";
import type { Expr, Kernel } from "../../../spec/kernel/tree.ts";
import { load, mul, u32 } from "../../../spec/kernel/build.ts";
import { sharedBody } from "../../../spec/kernel/shared_body.ts";
import {
  type AllGatherStep,
  type BufferAxis,
  perRank,
  type StepBase,
  type StepPart,
} from "../../../spec/plan/plan.ts";
import type { Size } from "../../../spec/size.ts";
import type { Graph, Node } from "../../graph/graph.ts";
import type { Placed } from "../../sharding/placed.ts";
import {
  axisSize,
  isUneven,
  localBound,
  partLengths,
  partStarts,
  planAxis,
} from "../../sharding/lengths.ts";
import { tidyGrid } from "./grid.ts";
import type {
  BufferDraft,
  Lowering,
  LoweringInput,
  Storage,
} from "./lowering.ts";
import type { KernelScope } from "./scope.ts";

export type {
  BufferDraft,
  Lowering,
  LoweringInput,
  Storage,
} from "./lowering.ts";

/** A lowering without results. */
export function startLowering(input: LoweringInput): Lowering {
  return {
    ...input,
    draft: {
      buffers: new Map(),
      kernels: new Map(),
      steps: [],
      weights: [],
      checks: [],
      blockAxes: new Map(),
      kernelNames: new Map(),
      wider: new Map(),
      forOne: new Map(),
      names: new Set([LENGTHS, ...leafNames(input.model.graph)]),
      numbers: new Map(),
    },
    values: {
      storages: new Map(),
      sent: new Map(),
      rounds: new Map(),
      groups: new Map(),
      rowStarts: new Map(),
      results: new Map(),
      norms: new Map(),
      merges: new Map(),
      ropeTables: new Map(),
      quantized: new Map(),
      bucketStorage: new Map(),
    },
    progress: { ranks: "all" },
  };
}

function leafNames(graph: Graph): string[] {
  return graph.nodes.flatMap(({ params }) =>
    "name" in params ? [params.name] : []
  );
}

/** The name of the lowered program. */
export const MAIN = "main";

/** The name of the buffer of this rank's dynamic lengths. */
export const LENGTHS = "dynamic lengths";

/** `base`, or `base.2`, `base.3`, … if it is taken. */
export function freshName(lowering: Lowering, base: string): string {
  for (let n = (lowering.draft.numbers.get(base) ?? 0) + 1;; n++) {
    const name = n === 1 ? base : `${base}.${n}`;
    if (lowering.draft.names.has(name)) continue;
    lowering.draft.numbers.set(base, n);
    lowering.draft.names.add(name);
    return name;
  }
}

/** An axis of a buffer, or a model axis by name. */
export type DraftAxis = string | BufferAxis;

/** A new buffer. Its bytes follow from its axes. */
type NewBuffer = Omit<BufferDraft, "bytes" | "axes"> & {
  readonly axes: readonly DraftAxis[];
};

/** Adds a buffer. Returns its name. */
export function addBuffer(lowering: Lowering, made: NewBuffer): string {
  const { buffers } = lowering.draft;
  const axes = made.axes.map((axis) =>
    typeof axis === "string" ? bufferAxis(lowering, axis) : axis
  );
  const buffer = { ...made, axes };
  invariant(!buffers.has(buffer.name), `two buffers '${buffer.name}'`);
  buffers.set(buffer.name, { ...buffer, bytes: storedBytes(buffer) });
  return buffer.name;
}

/** A scratch buffer. Returns its name. */
export function addScratch(
  lowering: Lowering,
  base: string,
  stored: StoredDType | Pick<Storage, "dtype" | "rowStride">,
  axes: readonly DraftAxis[],
): string {
  const { block = "" } = lowering.progress;
  const name = freshName(lowering, block ? `${block}.${base}` : base);
  const how = typeof stored === "string" ? { dtype: stored } : stored;
  return addBuffer(lowering, { ...how, name, kind: "scratch", axes });
}

/** Adds facts to a buffer. Returns its name. */
export function amendBuffer(
  lowering: Lowering,
  name: string,
  facts: Partial<
    Pick<
      BufferDraft,
      "unreduced" | "writers" | "written" | "routing" | "sentFrom"
    >
  >,
): string {
  const known = lowering.draft.buffers.get(name);
  invariant(known, `no buffer '${name}'`);
  lowering.draft.buffers.set(name, { ...known, ...facts });
  return name;
}

const bufferAxes = new WeakMap<Placed, Map<string, BufferAxis>>();

/** The buffer axis of a tensor axis: its local bound, marked if dynamic. */
function bufferAxis({ placed }: Lowering, axis: string): BufferAxis {
  return cachedWith(bufferAxes, placed, {
    key: axis,
    create: () => {
      const size = perRank(localBound(placed, axis));
      return placed.axes[axis]!.dynamic
        ? { axis: planAxis(placed, axis), size, dynamic: true }
        : { axis, size };
    },
  });
}

/** The length of an axis in a kernel: a constant, or read from the lengths buffer. */
export function lengthOf(
  scope: KernelScope,
  axis: string,
): Expr {
  const { placed } = scope.lowering;
  const { dynamic, size } = placed.axes[axis]!;
  if (!dynamic) {
    return isUneven(placed, placed.axes[axis])
      ? partOf(scope, axis, "length")
      : u32(size);
  }
  const slot = placed.counts.indexOf(planAxis(placed, axis));
  return load(scope.read(LENGTHS), u32(slot), "u32");
}

/** The constants with the length and start of each sharded axis on a rank. */
export const PARTS = "parts of axes";

/** The local length or the first item of a sharded axis, from one buffer for all such axes without duplicates. */
export function partOf(
  scope: KernelScope,
  axis: string,
  what: "length" | "start",
): Expr {
  const slot = partIndex(scope.lowering, axis, what);
  return load(scope.read(PARTS), u32(slot), "u32");
}

/** The index of a length or first item in the buffer of parts. */
export function partIndex(
  lowering: Lowering,
  axis: string,
  what: "length" | "start",
): number {
  const { draft } = lowering;
  draft.parts ??= addParts(lowering);
  return draft.parts.get(axis)! + (what === "length" ? 0 : 1);
}

/** Adds the buffer of parts. Returns the index of each sharded axis in it. */
function addParts(lowering: Lowering): Map<string, number> {
  const { placed } = lowering;
  const columns: number[][] = [];
  const columnOf = new Map<string, number>();
  const known = new Map<string, number>();
  for (const [name, axis] of Object.entries(placed.axes)) {
    const lengths = partLengths(placed, axis);
    if (!lengths) continue;
    const starts = partStarts(placed, axis);
    const key = `${axis.over}: ${lengths}; ${starts}`;
    if (!known.has(key)) {
      known.set(key, columns.length);
      const ranks = groupRanks(placed.mesh, axis.over);
      for (const part of [lengths, starts]) {
        columns.push(ranks.map((groupRank) => part[groupRank]!));
      }
    }
    columnOf.set(name, known.get(key)!);
  }
  addTable(lowering, PARTS, {
    axis: "length and start",
    data: Array.from(
      { length: placed.ranks },
      (_, rank) => columns.map((column) => column[rank]!),
    ),
  });
  return columnOf;
}

/** Adds a constant buffer of u32 along one axis, once. Returns its name. */
export function addConst(
  lowering: Lowering,
  name: string,
  make: () => BufferAxis & Pick<Required<BufferDraft>, "data">,
): string {
  if (lowering.draft.buffers.has(name)) return name;
  const { data, ...axis } = make();
  return addBuffer(lowering, {
    name,
    kind: "const",
    dtype: "u32",
    axes: [axis],
    data,
  });
}

/** Adds a constant buffer with a list per rank. */
export function addTable(
  lowering: Lowering,
  name: string,
  { axis, data }: {
    readonly axis: string;
    readonly data: readonly (readonly number[])[];
  },
): string {
  return addConst(lowering, name, () => ({
    axis,
    size: data[0]!.length,
    data: dataPerRank(data),
  }));
}

/** The product of lengths in a kernel. */
export function productOf(scope: KernelScope, axes: readonly string[]): Expr {
  return axes.reduce<Expr>(
    (product, axis) => mul(product, lengthOf(scope, axis)),
    u32(1),
  );
}

/** The product of lengths that must be fixed for the kernel of `node`. Throws ModelError if one is dynamic. */
export function fixedProduct(
  lowering: Lowering,
  node: Node,
  axes: readonly string[],
): number {
  return axes.reduce((product, axis) => {
    const { dynamic, size } = lowering.placed.axes[axis]!;
    const why = dynamic
      ? `the length of '${axis}' on a rank is known only at run time. Give the axis a fixed size, and do not place it`
      : isUneven(lowering.placed, lowering.placed.axes[axis])
      ? `ranks have different numbers of items of '${axis}'. Place equally many on each of them`
      : undefined;
    if (why) {
      throw new ModelError(
        `Cannot ${opOf(node)} '${node.inputs[0]!.axes.join(" ")}': ${why}`,
        node.span,
      );
    }
    return product * size;
  }, 1);
}

/** The op of a node, as its user wrote it. */
export function opOf(node: Node): string {
  return node.primitive === "reduce" ? node.params.kind : labelOp(node);
}

/** The host's product of lengths. */
export function sizeOf(
  lowering: Lowering,
  axes: readonly string[],
  over?: readonly string[],
): Size {
  const factors = axes.map((axis) => axisSize(lowering.placed, axis, over));
  const fixed = factors.reduce<number>(
    (n, size) => typeof size === "number" ? n * size : n,
    1,
  );
  const rest = factors.filter((size) => typeof size !== "number");
  if (!rest.length) return fixed;
  if (rest.length === 1 && fixed === 1) return rest[0]!;
  return { mul: fixed === 1 ? rest : [...rest, fixed] };
}

/** Adds a kernel once. Returns its name. */
export function addKernel(lowering: Lowering, kernel: Kernel): string {
  const { kernelNames } = lowering.draft;
  // Equal layers often share one kernel object.
  const name = kernelNames.get(kernel) ?? addByBody(lowering, kernel);
  kernelNames.set(kernel, name);
  return name;
}

/** Keys of kernels: equal for kernels that differ at most in their names. */
const kernelKeys = new WeakMap<Kernel, string>();

function addByBody(lowering: Lowering, kernel: Kernel): string {
  const { workgroupSize, bindings, shared } = kernel;
  const { body, number } = sharedBody(kernel.body);
  const key = kernelKeys.get(kernel) ??
    JSON.stringify([number, workgroupSize, bindings, shared]);
  kernelKeys.set(kernel, key);
  const known = lowering.draft.kernelNames.get(key);
  if (known) return known;
  // The name may contain axis names, which may have any characters.
  const base = kernel.name.replaceAll(/\W+/g, "_");
  let name = base;
  for (let n = 2; lowering.draft.kernels.has(name); n++) name = `${base}_${n}`;
  lowering.draft.kernels.set(name, { ...kernel, name, body });
  lowering.draft.kernelNames.set(key, name);
  return name;
}

/** Launch of a kernel. `bindings` maps its binding names, except `lengths`, to buffers and may contain more. */
export interface Launch {
  readonly bindings: { readonly [binding: string]: string };
  readonly workgroups: readonly [Size, Size, Size];
  readonly part?: StepPart | undefined;
}

/** Adds a launch of a kernel for a node. */
export function addLaunch(
  lowering: Lowering,
  node: Node,
  kernel: Kernel,
  launch: Launch,
): void {
  const given: Launch["bindings"] = { lengths: LENGTHS, ...launch.bindings };
  const bindings = kernel.bindings.map(({ name }) => {
    const buffer = given[name];
    invariant(
      buffer !== undefined,
      `kernel '${kernel.name}' has no buffer for '${name}'`,
    );
    return [name, buffer] as const;
  });
  lowering.draft.steps.push({
    op: "launch",
    ranks: lowering.progress.ranks,
    kernel: addKernel(lowering, kernel),
    bindings: Object.fromEntries(bindings),
    workgroups: tidyGrid(lowering.placed, launch.workgroups),
    ...about(lowering, node, launch.part),
  });
}

/** Adds an all-gather of `words` words per rank, or per row, for a node. */
export function addAllGather(
  lowering: Lowering,
  node: Node,
  { words, part, ...step }:
    & Pick<AllGatherStep, "over" | "from" | "to" | "rows" | "blocks">
    & { readonly words: number; readonly part?: StepPart },
): void {
  lowering.draft.steps.push({
    op: "allGather",
    ranks: lowering.progress.ranks,
    ...step,
    bytes: words * 4,
    ...about(lowering, node, part),
  });
}

/** The ranks that have a node's value, or for a send, those of its source and destination. */
export function ranksOf(
  { mesh }: Pick<Lowering["placed"], "mesh">,
  at: readonly number[] | undefined,
): RankSet {
  const axis = stageAxis(mesh)?.name;
  return axis === undefined || at === undefined
    ? "all"
    : { [axis]: [...at].sort((a, b) => a - b) };
}

/** Label, span and part of a step. */
export function about(
  { progress }: Lowering,
  node: Node,
  part?: StepPart,
): Pick<StepBase, "span" | "part" | "phase" | "block"> & {
  readonly label: string;
} {
  const label = labelOf(node);
  return {
    label: node.chunk ? `${label}, ${node.chunk}` : label,
    ...(node.span ? { span: node.span } : {}),
    ...node.block === undefined ? {} : { block: node.block },
    ...(part ? { part } : {}),
    ...progress.phase ? { phase: progress.phase } : {},
  };
}

/** The mesh axes along which ranks have terms of a value. */
export function unreducedOf({ sharding }: Node): readonly string[] {
  return sharding?.unreduced ?? [];
}

/** An axis in a label: without the block if it is the node's own or an enclosing one. */
function axisLabel(axis: string, { block = "" }: Node): string {
  const of = blockOfAxis(axis);
  return of !== "" && isWithin(block, of) ? axis.slice(of.length + 1) : axis;
}

/** `f32[token/ep embed]`, `f32[embed]{unreduced:dp+ep}` */
function typeOf(node: Node): string {
  const over = unreducedOf(node);
  const axes = node.axes.map((axis) => axisLabel(axis, node));
  return `${node.dtype}[${axes.join(" ")}]${
    over.length > 0 ? `{unreduced:${over.join("+")}}` : ""
  }`;
}

/** The op of a step. Parts of a dispatch or combine also name their part. */
function labelOp(node: Node): string {
  switch (node.primitive) {
    case "map":
      return node.params.op;
    case "allToAll":
    case "moveRows":
      return node.params.direction === "forward" ? "dispatch" : "combine";
    case "assign":
    case "gatherCounts":
    case "rounds":
    case "nodeCounts":
    case "group":
    case "permute":
    case "received":
    case "checkIds":
      return "dispatch";
    case "localCombine":
      return "combine";
    default:
      return node.primitive;
  }
}

/**
 * `dot over embed : f32[token ffn]`; for collectives, `allGather over ep : f32[token/ep embed] -> f32[token embed]`.
 */
export function labelOf(node: Node): string {
  const op = labelOp(node);
  const over = "over" in node.params && labelOp(node) !== "dispatch"
    ? ` over ${
      [node.params.over].flat().map((axis) => axisLabel(axis, node))
        .join(isCollective(node.primitive) ? "+" : " ")
    }`
    : "";
  const has = isCollective(node.primitive)
    ? `${typeOf(node.inputs[0]!)} -> `
    : "";
  return `${op}${over} : ${has}${typeOf(node)}`;
}
