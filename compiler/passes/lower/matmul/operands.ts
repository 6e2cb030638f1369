/** Operands of matmuls, and the indices of their results. */

import { invariant } from "../../../../spec/errors.ts";
import { add, mul, u32 } from "../../../../spec/kernel/build.ts";
import type { Expr } from "../../../../spec/kernel/tree.ts";
import type { NodeOf } from "../../../graph/graph.ts";
import type { MatmulWeight } from "../../../kernels/matmul/options.ts";
import type { Lowering, Storage } from "../context.ts";
import { rowMajorStorage } from "../elementwise.ts";
import { atRow } from "../index_space.ts";
import { type At, atFlat, atJoined } from "../indices.ts";
import { filedAxes, isGathered, rightAxes } from "../params/params.ts";
import type { GroupedRows } from "../routing/group.ts";
import type { KernelScope } from "../scope.ts";
import { dotShape } from "./dot_shape.ts";
import { hasMatmulShape } from "./is_matmul.ts";

/**
 * Transposes and decodes a parameter stored for another contraction, for example that of the forward pass, for the tiled
 * kernel: costs one pass over the weight and saves many over the rows. Undefined if it does not help.
 */
export function reorderedRight(
  lowering: Lowering,
  node: NodeOf<"dot">,
): Storage | undefined {
  const right = node.inputs[1]!;
  const layout = lowering.model.layouts.get(right);
  const shape = dotShape(node);
  const known = layout !== undefined || isGathered(right);
  const fits = known &&
    shape.columns.length > 0 && hasMatmulShape(node, lowering.model.dispatched);
  return fits ? rowMajorStorage(lowering, right, rightAxes(shape)) : undefined;
}

/** A parameter in its stored layout. A gathered parameter is extracted from its bucket. */
function rightOf(lowering: Lowering, node: NodeOf<"dot">): Storage {
  const right = node.inputs[1]!;
  const found = lowering.values.storages.get(right)!;
  return found.bucket
    ? rowMajorStorage(lowering, right, rightAxes(dotShape(node)))
    : found;
}

/** Whether the right operand of a dot has the contracted axes innermost. */
function isStoredAsFiled(lowering: Lowering, node: NodeOf<"dot">): boolean {
  const layout = lowering.model.layouts.get(node.inputs[1]!);
  const shape = dotShape(node);
  const order = layout?.axes.join();
  return layout?.filed === true && order === filedAxes(shape).join() &&
    order !== rightAxes(shape).join();
}

/** The right operands of dots that one kernel computes. */
export function weightsOf(
  scope: KernelScope,
  dots: readonly NodeOf<"dot">[],
  { k, width, reordered }: {
    readonly k: number;
    readonly width: number;
    readonly reordered?: Storage | undefined;
  },
): MatmulWeight[] {
  const { lowering } = scope;
  return dots.map((dot) => {
    const filed = reordered === undefined && isStoredAsFiled(lowering, dot);
    const param = reordered ?? rightOf(lowering, dot);
    return {
      ...filed ? { inside: "k" as const } : {},
      binding: scope.read(param.buffer),
      stored: param.packed?.stored ?? param.dtype,
      ...Object.fromEntries(
        (["scales", "offsets", "factors"] as const).flatMap((part) => {
          const buffer = param.packed?.[part];
          return buffer === undefined ? [] : [[part, scope.read(buffer)]];
        }),
      ),
      rowStride: param.rowStride ?? (filed ? k : width),
    };
  });
}

/** The left operand of a matmul. */
export interface MatmulLeft {
  readonly storage: Storage;
  /** Whether rows are consecutive in memory, unless `storage.rows` selects them. */
  readonly contiguous: boolean;
  /** The index of element k of a row. */
  at(scope: KernelScope, row: Expr, k: Expr): At;
}

/** The left operand of dots that one kernel computes. */
export function leftOf(
  lowering: Lowering,
  { dots, rows, over, grouped }: {
    readonly dots: readonly NodeOf<"dot">[];
    readonly rows: readonly string[];
    readonly over: readonly string[];
    readonly grouped: GroupedRows | undefined;
  },
): MatmulLeft {
  const storage = lowering.values.storages.get(dots[0]!.inputs[0]!)!;
  invariant(storage, "the left operand of a dot is not stored");
  const order = [...storage.rows ? [] : rows, ...over];
  return {
    storage,
    contiguous: order.join() === storage.axes.join() &&
      storage.rowStride === undefined && !storage.bucket,
    at: (scope, row, k) => {
      const inner = atFlat(scope, over, k);
      return grouped
        ? atRow(scope, inner, { grouped, row })
        : atJoined(over, inner, atFlat(scope, rows, row));
    },
  };
}

/** The index of a matmul result with these row and column axes. */
export function matmulAt(
  scope: KernelScope,
  { rows, columns, width }: {
    readonly rows: readonly string[];
    readonly columns: readonly string[];
    readonly width: number;
  },
  { row, column }: { readonly row: Expr; readonly column: Expr },
): At {
  const inner = atFlat(scope, columns, column);
  const order = [...rows, ...columns];
  return {
    ...atJoined(columns, inner, atFlat(scope, rows, row)),
    flat: { order, index: add(mul(row, u32(width)), column) },
  };
}
