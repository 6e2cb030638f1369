/** Quantizes left operands of contractions to 8-bit integers with a scale per block, once for all readers. */

import { Q8_BLOCK } from "../../../../spec/weights/activations.ts";
import { elementwiseGrid } from "../../../../spec/kernel/elementwise.ts";
import {
  add,
  div,
  load,
  loadStored,
  mul,
  rem,
  u32,
} from "../../../../spec/kernel/build.ts";
import type { Expr } from "../../../../spec/kernel/tree.ts";
import type { Size } from "../../../../spec/size.ts";
import type { Node, NodeOf } from "../../../graph/graph.ts";
import {
  quantize,
  type QuantizedLayout,
  quantizedRow,
} from "../../../kernels/quantize.ts";
import {
  addScratch,
  type DraftAxis,
  type Lowering,
  productOf,
  sizeOf,
} from "../context.ts";
import { loadFrom } from "../emit.ts";
import type { GroupedRows } from "../routing/group.ts";
import type { At } from "../indices.ts";
import type { QuantizedValue, Storage } from "../lowering.ts";
import { KernelScope } from "../scope.ts";

/** The left operand of a contraction. */
export interface LeftOperand {
  readonly layout: QuantizedLayout;
  readonly k: number;
  readonly rows: readonly string[];
  readonly over: readonly string[];
  /** Rows are consecutive in memory. */
  readonly contiguous: boolean;
  readonly grouped: GroupedRows | undefined;
  /** The index of element k of a row of the contraction. */
  leftAt(scope: KernelScope, row: Expr, k: Expr): At;
}

/** The quantized left operand of a contraction. */
export function quantizedValue(
  lowering: Lowering,
  dot: NodeOf<"dot">,
  left: LeftOperand,
): QuantizedValue {
  const value = dot.inputs[0]!;
  const known = lowering.values.quantized.get(value) ?? new Map();
  const key = `${left.layout.order} ${left.layout.sumOf}`;
  const found = known.get(key);
  if (found) return found;
  const made = quantizeValue(lowering, dot, left);
  lowering.values.quantized.set(value, new Map([...known, [key, made]]));
  return made;
}

/** Rows of a value: their axes in a plan, and their number, for the kernel and for the host. */
interface Rows {
  readonly axes: readonly DraftAxis[];
  readonly size: Size;
  count(scope: KernelScope): Expr;
}

function quantizeValue(
  lowering: Lowering,
  dot: NodeOf<"dot">,
  { layout, k, rows, contiguous, grouped, leftAt }: LeftOperand,
): QuantizedValue {
  const value = dot.inputs[0]!;
  const storage = lowering.values.storages.get(value)!;
  const memory = contiguous
    ? rowsInMemory(lowering, value, { storage, rows, grouped })
    : undefined;
  const of = memory ?? rowsOf(lowering, rows, grouped);
  const buffer = addScratch(lowering, "quantized", "u32", [
    ...of.axes,
    { axis: "word of a quantized row", size: quantizedRow(k, layout).words },
  ]);
  const blocks = k / Q8_BLOCK;
  const scope = new KernelScope(lowering);
  const kernel = quantize({
    name: `quantize_${k}_${layout.order}_${layout.sumOf}`,
    ...layout,
    k,
    bindings: scope.bindings,
    blocks: mul(of.count(scope), u32(blocks)),
    at: (block, j) => {
      if (memory) {
        return loadStored(
          scope.read(storage.buffer),
          storage.dtype,
          add(mul(block, u32(Q8_BLOCK)), j),
        );
      }
      const inRow = add(mul(rem(block, u32(blocks)), u32(Q8_BLOCK)), j);
      const row = div(block, u32(blocks));
      return loadFrom(scope, storage, leftAt(scope, row, inRow));
    },
    to: scope.write(buffer),
  });
  const count: Size = typeof of.size === "number"
    ? of.size * blocks
    : { mul: [of.size, blocks] };
  scope.launch(dot, kernel, elementwiseGrid(count));
  return { buffer, inMemory: memory !== undefined };
}

/** Rows in the order of a contraction. */
function rowsOf(
  lowering: Lowering,
  rows: readonly string[],
  grouped: GroupedRows | undefined,
): Rows {
  return grouped ? groupedRows(grouped) : {
    axes: rows,
    size: sizeOf(lowering, rows),
    count: (scope) => productOf(scope, rows),
  };
}

function groupedRows({ axis, received, rowCount }: GroupedRows): Rows {
  return {
    axes: [{ axis, size: received.bound, dynamic: true }],
    size: received.size,
    count: (scope) => load(scope.read(rowCount), u32(0), "u32"),
  };
}

/** Rows in memory order. Undefined if their number is unknown. */
function rowsInMemory(
  lowering: Lowering,
  value: Node,
  { storage, rows, grouped }: {
    readonly storage: Storage;
    readonly rows: readonly string[];
    readonly grouped: GroupedRows | undefined;
  },
): Rows | undefined {
  const { through } = storage.rows ?? {};
  if (!grouped || through === undefined || through === grouped.rowOf) {
    return rowsOf(lowering, rows, grouped);
  }
  if (grouped.tokens && through === grouped.tokens.tokenOf) {
    const { axis, received, rowCount } = grouped;
    return {
      axes: [{ axis, size: received.tokenBound, dynamic: true }],
      size: received.tokenSize,
      // The number of tokens follows that of rows.
      count: (scope) => load(scope.read(rowCount), u32(1), "u32"),
    };
  }
  if (through !== grouped.tokenOf || value.primitive !== "received") {
    return undefined;
  }
  // Tokens that are not moved.
  const [tokens] = value.inputs as [Node, Node];
  const axes = tokens.axes.filter((axis) => !storage.axes.includes(axis));
  return rowsOf(lowering, axes, undefined);
}
