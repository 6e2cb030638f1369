/**
 * Splits expressions that read more buffers than a kernel may bind: some inner nodes are stored instead, or have a
 * kernel of their own.
 */

import { packingOf } from "../../spec/weights/packed.ts";
import { GUARANTEED_LIMITS } from "../../spec/limits.ts";
import type { Graph, Node } from "../graph/graph.ts";
import type { RowsNode } from "../graph/routing/dispatched_nodes.ts";
import type { Placed } from "../sharding/placed.ts";
import type { ParamLayout } from "./param_layout.ts";
import { isUneven } from "../sharding/lengths.ts";

/** Facts about the nodes of expressions. */
export interface Expressions {
  readonly graph: Graph;
  /** Whether a node is computed in its user's kernel unless it is stored. */
  isInline(node: Node): boolean;
  /** Whether the kernel of this contraction can include the expression that uses it. */
  canEnd(node: Node): boolean;
  /** Nodes on dispatched rows. */
  readonly dispatched: ReadonlyMap<Node, RowsNode>;
  readonly layouts: ReadonlyMap<Node, ParamLayout>;
  readonly placed: Placed;
  /** Buffers that a kernel of the device may bind. */
  readonly maxBindings: number;
}

const EXPERT = "expert of row";
const ROWS = "row count";
const PARTS = "parts of axes";
const TILES = "tiles of matmul";
const MAX_BUFFERS = GUARANTEED_LIMITS.maxStorageBuffersPerShaderStage;

/** Bindings of a kernel, by node or by name; equal ones are one binding. */
type Bindings = ReadonlySet<Node | string>;

/** Expressions, and the expert axes of dispatched rows. */
interface Known extends Expressions {
  readonly experts: ReadonlySet<string>;
}

/**
 * Stores inner nodes of expressions that would exceed the binding limit, widest first. If that is not enough for the
 * device, adds contractions whose kernel does not include the expression to `apart`; `canEnd` is then false for them.
 */
export function storeWide(
  expressions: Expressions,
  { stored, apart }: {
    readonly stored: Set<Node>;
    readonly apart: Set<Node>;
  },
): void {
  const rows = [...expressions.dispatched.keys()];
  const known: Known = {
    ...expressions,
    experts: new Set(rows.flatMap(({ axes }) => axes.slice(0, 1))),
  };
  const needs = new Map<Node, Bindings>();
  for (const node of known.graph.nodes) {
    if (!known.isInline(node)) {
      needs.set(node, leafBindings(known, node));
      continue;
    }
    const needed = resultBindings(known, node);
    const inner = node.inputs.map((input) => needs.get(input)!);
    let all = union([needed, ...inner]);
    while (count(all) > MAX_BUFFERS) {
      const widest = widestOf(known, node, { inner, stored });
      if (widest < 0) break;
      const input = node.inputs[widest]!;
      stored.add(input);
      needs.set(input, leafBindings(known, input));
      node.inputs.forEach((other, i) => {
        if (other === input) inner[i] = needs.get(input)!;
      });
      all = union([needed, ...inner]);
    }
    while (count(all) > known.maxBindings) {
      const dot = node.inputs.findLastIndex((input) => known.canEnd(input));
      if (dot < 0) break;
      apart.add(node.inputs[dot]!);
      inner[dot] = leafBindings(known, node.inputs[dot]!);
      all = union([needed, ...inner]);
    }
    needs.set(node, stored.has(node) ? leafBindings(known, node) : all);
  }
}

/** The tile list contains the row count of a matmul and the expert of each row. */
function count(bindings: Bindings): number {
  if (!bindings.has(TILES)) return bindings.size;
  return bindings.size - [ROWS, EXPERT].filter((b) => bindings.has(b)).length;
}

/** The input of `node` that needs the most bindings and can be stored; -1 if none. */
function widestOf(
  known: Known,
  node: Node,
  { inner, stored }: {
    readonly inner: readonly Bindings[];
    readonly stored: ReadonlySet<Node>;
  },
): number {
  let widest = -1;
  for (const [i, input] of node.inputs.entries()) {
    if (!known.isInline(input) || stored.has(input)) continue;
    if (inner[i]!.size > (inner[widest]?.size ?? 0)) widest = i;
  }
  return widest;
}

function union(sets: readonly Bindings[]): Bindings {
  return new Set(sets.flatMap((set) => [...set]));
}

/** Bindings of a kernel besides its reads: its result, and lengths or the row lists. */
function resultBindings(
  { dispatched, placed }: Expressions,
  node: Node,
): Bindings {
  const table = node.primitive === "rope"
    ? [`table ${node.params.positions} ${node.params.inverseFrequencies}`]
    : node.primitive === "allSlice"
    ? [
      placed.axes[node.params.to]!.table ? PARTS : `items of ${node.params.to}`,
    ]
    : [];
  const parts = [node, ...node.inputs].some((n) =>
    n.axes.some((axis) => isUneven(placed, placed.axes[axis]))
  );
  return new Set([
    "result",
    dispatched.has(node) ? ROWS : "lengths",
    ...parts ? [PARTS] : [],
    ...table,
  ]);
}

/** Bindings for reading a stored value. A contraction or combine may be fused into the kernel that uses it. */
function leafBindings(known: Known, node: Node): Bindings {
  if (known.canEnd(node)) {
    const [, weight] = node.inputs;
    return new Set([
      ...node.inputs,
      ...rows(known, node),
      ...known.dispatched.has(node) ? [TILES] : [],
      ...weight ? scalesOf(known, weight) : [],
    ]);
  }
  if (node.primitive === "combine") {
    return new Set([node, "sent rows", "weights"]);
  }
  return new Set([node, ...scalesOf(known, node), ...rows(known, node)]);
}

/** Bindings of a packed parameter besides its elements. Blocks have no others. */
function scalesOf({ layouts }: Known, node: Node): string[] {
  const packing = packingOf(layouts.get(node)?.stored);
  if (node.primitive !== "param" || !packing || packing.block) return [];
  const { elements: _, ...others } = packing.names;
  return Object.keys(others).map((part) => `${part} of ${node.params.name}`);
}

/** Bindings for dispatched rows: the order of rows, and the expert of each. */
function rows({ dispatched, experts }: Known, node: Node): string[] {
  if (dispatched.has(node)) return ["row order"];
  return node.axes.some((axis) => experts.has(axis)) ? [EXPERT] : [];
}
