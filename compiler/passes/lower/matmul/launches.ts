/** Launches of a matmul: one function for each kind of kernel. */

import type { PackedDType } from "../../../../spec/weights/packed.ts";
import { add, loadStored, mul, u32 } from "../../../../spec/kernel/build.ts";
import type { Grid } from "../../../../spec/kernel/make.ts";
import type { Expr, Kernel } from "../../../../spec/kernel/tree.ts";
import { segmentsOf } from "../../../../spec/numerics.ts";
import type { Size } from "../../../../spec/size.ts";
import type { Node, NodeOf } from "../../../graph/graph.ts";
import { matmulBytes } from "../../../kernels/matmul/bytes.ts";
import {
  type BytesMatmulOptions,
  quantizedLayoutOf,
} from "../../../kernels/matmul/bytes_operands.ts";
import { matmulMatrices } from "../../../kernels/matmul/matrices.ts";
import { matmul } from "../../../kernels/matmul/matmul.ts";
import type { MatmulOptions } from "../../../kernels/matmul/options.ts";
import {
  blocksInRound,
  DECODE_ROWS,
  matmulGrid,
  sumsInTeams,
  tileOfFewRows,
} from "../../../tuning/lanes.ts";
import { matrixGrid } from "../../../tuning/matrices.ts";
import { tileFor } from "../../../tuning/table.ts";
import {
  type MatmulTile,
  tileOfRow,
  tileOfWeights,
} from "../../../tuning/tile.ts";
import { adjacentOf } from "../adjacent.ts";
import { type Lowering, productOf, type Storage } from "../context.ts";
import { loadFrom, rowIn } from "../emit.ts";
import { writeTarget } from "../epilogue.ts";
import { atRow } from "../index_space.ts";
import { atFlat } from "../indices.ts";
import type { LaunchForOne } from "../lowering.ts";
import type { GroupedRows } from "../routing/group.ts";
import { KernelScope } from "../scope.ts";
import type { DotShape } from "./dot_shape.ts";
import { type InlineNorm, normOperands } from "./inline_norms.ts";
import { leftOf, matmulAt, type MatmulLeft, weightsOf } from "./operands.ts";
import { quantizedValue } from "./quantized.ts";
import { type LaunchRows, type MatrixForm, rowsOfLaunch } from "./rows.ts";
import { aloneOf, widerOf } from "./wider.ts";

/** A launch of a matmul; `norm`, `only` and `matrices` are those of `LaunchRows`. */
export interface MatmulParts
  extends MatmulShape, Pick<LaunchRows, "only" | "matrices"> {
  readonly target: Node;
  readonly reordered: Storage | undefined;
  readonly storage: Storage;
  readonly norm?: InlineNorm;
}

/** The kernel of a matmul and its launch. */
export interface MatmulLaunch {
  readonly scope: KernelScope;
  readonly kernel: Kernel;
  readonly grid: Grid;
  /** The kernel with more lanes, if its launch is not merged. Default: this one. */
  readonly wider?: Kernel | undefined;
  /** The kernel for one row, if its launch is not merged. Default: this one. */
  readonly alone?: LaunchForOne | undefined;
}

/** The axes and sizes of a matmul. */
export interface MatmulShape extends DotShape {
  readonly dots: readonly NodeOf<"dot">[];
  readonly k: number;
  readonly width: number;
  readonly grouped: GroupedRows | undefined;
  /** The maximum number of rows, as known to the host. */
  readonly all: Size;
  /** Whether activations are quantized. */
  readonly q8: boolean;
  /** Whether weights are read where they are stored. */
  readonly inPlace: boolean;
}

/** Options of a kernel without those of its left operand. */
type RightOptions = Omit<MatmulOptions, "left" | "leftRow"> & {
  readonly k: number;
  readonly segments: number;
};

/** A launch whose kernel is not created yet. */
interface LaunchDraft {
  readonly scope: KernelScope;
  readonly left: MatmulLeft;
  readonly right: RightOptions;
  /** Rows of the launch; its tiles if grouped. */
  readonly size: Size;
}

/** Creates a launch of a matmul. Undefined if it cannot compute the norm, or is not worth a launch for few rows. */
export function matmulOf(
  lowering: Lowering,
  parts: MatmulParts,
): MatmulLaunch | undefined {
  const { all, q8, inPlace, matrices, norm, only } = parts;
  const scope = new KernelScope(lowering);
  const left = leftOf(lowering, parts);
  const right = rightOptions(scope, parts);
  const fewTile = q8 || !inPlace || typeof all === "number"
    ? undefined
    : tileOfFewRows(right);
  const size = rowsOfLaunch(parts, fewTile ? DECODE_ROWS : 0);
  if (size === undefined) return undefined;
  const draft: LaunchDraft = { scope, left, right, size };
  if (q8) return quantizedLaunch(draft, parts);
  if (only === "many" && matrices) {
    return matricesLaunch(draft, parts, matrices.shape);
  }
  if (only === "one" && norm) return normedLaunch(draft, parts, norm);
  return only === "few"
    ? fewRowsLaunch(draft, parts, fewTile!)
    : plainLaunch(draft);
}

/** Binds the weights, and then the number of rows. */
function rightOptions(scope: KernelScope, parts: MatmulParts): RightOptions {
  const { lowering } = scope;
  const { target, dots, storage, rows, columns, k, width, grouped, q8 } = parts;
  const isGrouped = grouped !== undefined;
  const weights = weightsOf(scope, dots, parts);
  const { tile, suffix } = tileFor(lowering.options.tuning, {
    grouped: isGrouped,
    weights: weights.length,
    stored: weights[0]!.stored,
    k,
    columns: width,
    quantized: q8,
  });
  const to = { scope, node: target, storage, roots: dots };
  return {
    bindings: scope.bindings,
    name: `${grouped ? "grouped_" : ""}matmul${q8 ? "_q8" : ""}${
      dots.length > 1 ? "_pair" : ""
    }_${k}x${width}${suffix}`,
    k,
    segments: dots[0]!.params.segments ?? segmentsOf(k),
    columns: width,
    tile: tileOfWeights(tile, weights, {
      grouped: isGrouped,
      k,
      columns: width,
      maxLanes: lowering.options.maxLanes,
    }),
    rows: grouped ? u32(0) : productOf(scope, rows),
    ...grouped ? { grouped: { tiles: scope.read(grouped.tiles) } } : {},
    arithmetic: lowering.options.tuning.bytes,
    weights,
    epilogue: ({ row, column, expert }, sums) => {
      const at = grouped
        ? atRow(scope, atFlat(scope, columns, column), { grouped, row, expert })
        : matmulAt(scope, { rows, columns, width }, { row, column });
      return writeTarget(to, at, sums);
    },
  };
}

/** A launch whose rows are quantized to bytes. */
function quantizedLaunch(
  { scope, left, right, size }: LaunchDraft,
  { dots, k, rows, over, grouped }: MatmulParts,
): MatmulLaunch {
  const { storage, contiguous, at } = left;
  const quantized = right.weights.map(({ stored }) =>
    quantizedValue(scope.lowering, dots[0]!, {
      layout: quantizedLayoutOf(stored as PackedDType),
      k,
      rows,
      over,
      contiguous,
      leftAt: at,
      grouped,
    })
  );
  const options: BytesMatmulOptions = {
    ...right,
    // Drivers take long to compile loops of bytes.
    tile: right.tile.code === "small"
      ? { ...right.tile, columns: 1 }
      : right.tile,
    weights: right.weights.map((
      { binding, stored, scales, offsets, inside },
      i,
    ) => ({
      binding,
      stored: stored as PackedDType,
      scales: scales!,
      ...offsets === undefined ? {} : { offsets },
      ...inside === undefined ? {} : { inside },
      left: scope.read(quantized[i]!.buffer),
    })),
    leftRow: (row) =>
      quantized[0]!.inMemory && storage.rows
        ? rowIn(scope, storage, at(scope, row, u32(0)))
        : row,
  };
  return {
    scope,
    kernel: matmulBytes(options),
    grid: matmulGrid(options, size),
  };
}

/** A launch for many rows, whose operands have 16 bits. */
function matricesLaunch(
  draft: LaunchDraft,
  { grouped, width }: MatmulParts,
  shape: MatrixForm["shape"],
): MatmulLaunch {
  const { scope, size } = draft;
  return {
    scope,
    kernel: matmulMatrices(withLeft(draft), shape),
    grid: matrixGrid(shape, { grouped: grouped !== undefined, width, size }),
  };
}

/** A launch for one row that computes its norm. Undefined if teams cannot share the row. */
function normedLaunch(
  draft: LaunchDraft,
  { dots }: MatmulParts,
  norm: InlineNorm,
): MatmulLaunch | undefined {
  const { scope, left, right, size } = draft;
  const options = {
    ...withLeft(draft),
    ...normOperands(scope, norm, dots[0]!),
    tile: tileOfRow(right),
    name: `${right.name}_norm`,
  };
  if (!left.contiguous || blocksInRound(options, 1) === 0) return undefined;
  return {
    scope,
    kernel: matmul(options),
    grid: matmulGrid(options, size),
    wider: widerOf(scope.lowering, options),
  };
}

/** A launch for few rows, in which a workgroup has the rows of one team. */
function fewRowsLaunch(
  draft: LaunchDraft,
  { norm }: MatmulParts,
  tile: MatmulTile,
): MatmulLaunch {
  const { scope, size } = draft;
  const { lowering } = scope;
  const plain = withLeft(draft);
  const options = { ...plain, tile, inTeams: true };
  return {
    scope,
    kernel: matmul(options),
    grid: matmulGrid(options, size),
    wider: widerOf(lowering, options),
    alone: norm ? undefined : aloneOf(lowering, plain),
  };
}

/** A launch for the remaining numbers of rows. */
function plainLaunch(draft: LaunchDraft): MatmulLaunch {
  const { scope, right, size } = draft;
  const options = { ...withLeft(draft), inTeams: sumsInTeams(right) };
  return {
    scope,
    kernel: matmul(options),
    grid: matmulGrid(options, size),
  };
}

/** Options with a left operand of floats. */
function withLeft({ scope, left, right }: LaunchDraft): MatmulOptions {
  const { storage, contiguous, at } = left;
  const leftAt = (row: Expr, k: Expr) => at(scope, row, k);
  const { k, segments } = right;
  return {
    ...right,
    leftRow: (row) =>
      contiguous
        ? mul(
          storage.rows ? rowIn(scope, storage, leftAt(row, u32(0))) : row,
          u32(k),
        )
        : row,
    left: (base, i) =>
      contiguous
        ? loadStored(scope.read(storage.buffer), storage.dtype, add(base, i))
        : loadFrom(scope, storage, leftAt(base, i)),
    leftAdjacent: contiguous
      ? adjacentOf(scope, storage, k / segments)
      : undefined,
  };
}
