/** Contractions whose right operand is a parameter in its layout: the tiled matmul. */

import type { PackedDType } from "../../../../spec/weights/packed.ts";
import { invariant } from "../../../../spec/errors.ts";
import { add, loadStored, mul, u32 } from "../../../../spec/kernel/build.ts";
import type { Expr, Kernel } from "../../../../spec/kernel/tree.ts";
import type { Grid } from "../../../../spec/kernel/make.ts";
import { segmentsOf } from "../../../../spec/numerics.ts";
import type { Size } from "../../../../spec/size.ts";
import type { Node, NodeOf } from "../../../graph/graph.ts";
import { matmul } from "../../../kernels/matmul/matmul.ts";
import { matmulMatrices } from "../../../kernels/matmul/matrices.ts";
import { matmulBytes } from "../../../kernels/matmul/bytes.ts";
import {
  type BytesMatmulOptions,
  quantizedLayoutOf,
} from "../../../kernels/matmul/bytes_operands.ts";
import { quantizedValue } from "./quantized.ts";
import type {
  MatmulOptions,
  MatmulWeight,
} from "../../../kernels/matmul/options.ts";
import {
  blocksInRound,
  DECODE_ROWS,
  matmulGrid,
  sumsInTeams,
  tileOfFewRows,
} from "../../../tuning/lanes.ts";
import { matrixGrid, matrixTiling } from "../../../tuning/matrices.ts";
import { tileFor } from "../../../tuning/table.ts";
import { tileHeight, tileOfRow, tileOfWeights } from "../../../tuning/tile.ts";
import { adjacentOf } from "../adjacent.ts";
import { routeOf } from "../routing/assign.ts";
import type { GroupedRows } from "../routing/group.ts";
import { type At, atFlat, atJoined } from "../indices.ts";
import {
  addKernel,
  amendBuffer,
  fixedProduct,
  type Lowering,
  productOf,
  sizeOf,
  type Storage,
} from "../context.ts";
import type { LaunchForOne } from "../lowering.ts";
import { aloneOf, widerOf } from "./wider.ts";
import { loadFrom, rowIn } from "../emit.ts";
import { targetStorage, writeTarget } from "../epilogue.ts";
import { rowMajorStorage } from "../elementwise.ts";
import { type DotShape, dotShape } from "./dot_shape.ts";
import { hasMatmulShape } from "./is_matmul.ts";
import { filedAxes, isGathered, rightAxes } from "../params/params.ts";
import { atRow } from "../index_space.ts";
import {
  type InlineNorm,
  inlineNormOf,
  launchForAllRows,
  normOperands,
} from "./inline_norms.ts";
import { type LaunchRows, type MatrixForm, rowsOfLaunch } from "./rows.ts";
import { KernelScope } from "../scope.ts";

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

/**
 * Lowers `target`: a dot, or the elementwise node that absorbed `dots`. `reordered`: the right operand, if its stored
 * layout does not fit.
 */
export function lowerMatmul(
  lowering: Lowering,
  target: Node,
  dots: readonly NodeOf<"dot">[],
  reordered?: Storage,
): void {
  const [first] = dots;
  const storage = targetStorage(lowering, target);
  const shape = shapeOf(lowering, { target, dots, reordered });
  const matrices = matricesOf(lowering, shape);
  const of: MatmulParts = { target, reordered, storage, ...shape, matrices };
  const norm = reordered ? undefined : inlineNormOf(lowering, first!);
  const normed = norm && matmulOf(lowering, { ...of, norm, only: "one" });
  const { maxBindings } = lowering.options;
  const computesNorm = normed && normed.kernel.bindings.length <= maxBindings;
  const { stores } = norm ?? {};
  // If another dot stores the norm, this one reads it.
  if (norm && !computesNorm && (stores ?? first) === first) {
    launchForAllRows(lowering, norm);
  }
  if (computesNorm && stores === first) {
    const { buffer } = lowering.values.storages.get(norm.node)!;
    amendBuffer(lowering, buffer, { writers: 2 });
  }
  const more: MatmulParts = computesNorm ? { ...of, norm } : of;
  const few = of.inPlace && matmulOf(lowering, { ...more, only: "few" });
  const many = matrices && matmulOf(lowering, { ...of, only: "many" });
  const launches = [
    ...computesNorm ? [normed] : [],
    ...few ? [few] : [],
    matmulOf(lowering, more)!,
    ...many ? [many] : [],
  ];
  if (launches.length > 1) {
    amendBuffer(lowering, storage.buffer, { writers: launches.length });
  }
  for (const { scope, kernel, grid, wider, alone } of launches) {
    scope.launch(target, kernel, grid);
    const name = addKernel(lowering, kernel);
    if (wider) lowering.draft.wider.set(name, wider);
    if (alone) lowering.draft.forOne.set(name, { alone });
  }
}

/** A launch of a matmul; `norm`, `only` and `matrices` are those of `LaunchRows`. */
interface MatmulParts
  extends MatmulShape, Pick<LaunchRows, "only" | "matrices"> {
  readonly target: Node;
  readonly reordered: Storage | undefined;
  readonly storage: Storage;
  readonly norm?: InlineNorm;
}

/** The kernel of a matmul and its launch. */
interface MatmulLaunch {
  readonly scope: KernelScope;
  readonly kernel: Kernel;
  readonly grid: Grid;
  /** The kernel with more lanes, if its launch is not merged. Default: this one. */
  readonly wider?: Kernel | undefined;
  /** The kernel for one row, if its launch is not merged. Default: this one. */
  readonly alone?: LaunchForOne | undefined;
}

/** The axes and sizes of a matmul. */
interface MatmulShape extends DotShape {
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

/** Returns the shape of a matmul. */
function shapeOf(
  lowering: Lowering,
  { target, dots, reordered }: {
    readonly target: Node;
    readonly dots: readonly NodeOf<"dot">[];
    readonly reordered: Storage | undefined;
  },
): MatmulShape {
  const [first] = dots;
  const shape = dotShape(first!);
  const group = lowering.model.dispatched.get(target);
  const grouped = group ? lowering.values.groups.get(group)! : undefined;
  return {
    ...shape,
    dots,
    k: fixedProduct(lowering, first!, shape.over),
    width: fixedProduct(lowering, first!, shape.columns),
    grouped,
    all: grouped ? grouped.tileSize : sizeOf(lowering, shape.rows),
    q8: reordered === undefined &&
      lowering.model.layouts.get(first!.inputs[1]!)?.q8 === true,
    inPlace: reordered === undefined &&
      dots.every(({ inputs: [, right] }) =>
        !lowering.values.storages.get(right!)!.bucket
      ),
  };
}

/** Creates the kernel of a matmul. Undefined if it cannot compute the norm, or is not worth a launch for few rows. */
function matmulOf(
  lowering: Lowering,
  parts: MatmulParts,
): MatmulLaunch | undefined {
  const { target, dots, reordered, storage, matrices, norm, only } = parts;
  const { over, rows, columns, k, width, grouped, all, q8, inPlace } = parts;
  const isGrouped = grouped !== undefined;
  const scope = new KernelScope(lowering);
  const [first] = dots;
  const left = lowering.values.storages.get(first!.inputs[0]!)!;
  invariant(left, "the left operand of a dot is not stored");
  const weights = weightsOf(scope, dots, { k, width, reordered });
  const contiguous =
    [...(left.rows ? [] : rows), ...over].join() === left.axes.join() &&
    left.rowStride === undefined && !left.bucket;
  const leftIn = (scope: KernelScope, row: Expr, k: Expr): At => {
    const inner = atFlat(scope, over, k);
    return grouped
      ? atRow(scope, inner, { grouped, row })
      : atJoined(over, inner, atFlat(scope, rows, row));
  };
  const leftAt = (row: Expr, k: Expr) => leftIn(scope, row, k);
  const { tile: chosen, suffix } = tileFor(lowering.options.tuning, {
    grouped: isGrouped,
    weights: weights.length,
    stored: weights[0]!.stored,
    k,
    columns: width,
    quantized: q8,
  });
  const to = { scope, node: target, storage, roots: dots };
  const common = {
    bindings: scope.bindings,
    name: `${grouped ? "grouped_" : ""}matmul${q8 ? "_q8" : ""}${
      dots.length > 1 ? "_pair" : ""
    }_${k}x${width}${suffix}`,
    k,
    segments: first!.params.segments ?? segmentsOf(k),
    columns: width,
    tile: tileOfWeights(chosen, weights, {
      grouped: isGrouped,
      k,
      columns: width,
      maxLanes: lowering.options.maxLanes,
    }),
    rows: grouped ? u32(0) : productOf(scope, rows),
    ...(grouped ? { grouped: { tiles: scope.read(grouped.tiles) } } : {}),
    epilogue: (
      { row, column, expert }: Parameters<MatmulOptions["epilogue"]>[0],
      sums: readonly Expr[],
    ) => {
      const at = grouped
        ? atRow(scope, atFlat(scope, columns, column), { grouped, row, expert })
        : matmulAt(scope, { rows, columns, width }, { row, column });
      return writeTarget(to, at, sums);
    },
  };
  const fewTile = q8 || !inPlace || typeof all === "number"
    ? undefined
    : tileOfFewRows({ ...common, weights });
  const tiles = rowsOfLaunch(parts, fewTile ? DECODE_ROWS : 0);
  if (tiles === undefined) return undefined;
  if (q8) {
    const quantized = weights.map(({ stored }) =>
      quantizedValue(lowering, first!, {
        layout: quantizedLayoutOf(stored as PackedDType),
        k,
        rows,
        over,
        contiguous,
        leftAt: leftIn,
        grouped,
      })
    );
    const options: BytesMatmulOptions = {
      ...common,
      // Drivers take long to compile loops of bytes.
      tile: common.tile.code === "small"
        ? { ...common.tile, columns: 1 }
        : common.tile,
      arithmetic: lowering.options.tuning.bytes,
      weights: weights.map((
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
        quantized[0]!.inMemory && left.rows
          ? rowIn(scope, left, leftAt(row, u32(0)))
          : row,
    };
    const kernel = matmulBytes(options);
    return { scope, kernel, grid: matmulGrid(options, tiles) };
  }
  const options: MatmulOptions = {
    ...common,
    arithmetic: lowering.options.tuning.bytes,
    weights,
    leftRow: (row) =>
      contiguous
        ? mul(left.rows ? rowIn(scope, left, leftAt(row, u32(0))) : row, u32(k))
        : row,
    left: (base, i) =>
      contiguous
        ? loadStored(scope.read(left.buffer), left.dtype, add(base, i))
        : loadFrom(scope, left, leftAt(base, i)),
    leftAdjacent: contiguous
      ? adjacentOf(scope, left, k / common.segments)
      : undefined,
  };
  if (matrices && only === "many") {
    const { shape } = matrices;
    return {
      scope,
      kernel: matmulMatrices(options, shape),
      grid: matrixGrid(shape, { grouped: isGrouped, width, size: tiles }),
    };
  }
  if (!norm || only !== "one") {
    const shared = only === "few"
      ? { ...options, tile: fewTile!, inTeams: true }
      : { ...options, inTeams: sumsInTeams(options) };
    return {
      scope,
      kernel: matmul(shared),
      grid: matmulGrid(shared, tiles),
      wider: only === "few" ? widerOf(lowering, shared) : undefined,
      alone: only === "few" && !norm ? aloneOf(lowering, options) : undefined,
    };
  }
  const tile = tileOfRow(options);
  const of = { ...options, ...normOperands(scope, norm, first!), tile };
  if (!contiguous || blocksInRound(of, 1) === 0) return undefined;
  const normed = { ...of, name: `${of.name}_norm` };
  return {
    scope,
    kernel: matmul(normed),
    grid: matmulGrid(normed, tiles),
    wider: widerOf(lowering, normed),
  };
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

/** Returns the form of a matmul for many rows. Undefined if it has none. */
function matricesOf(
  { options, model }: Lowering,
  { dots, k, width, grouped, all, q8 }: MatmulShape,
): MatrixForm | undefined {
  const isFull = q8 || model.routers.has(dots[0]!.inputs[1]!);
  if (isFull || options.operands === "f32") return undefined;
  const sent = grouped?.received.sent;
  const tiling = matrixTiling({ weights: dots.length, k, columns: width }, {
    height: tileHeight(options.tile),
    memory: options.maxShared,
    ...sent
      ? {
        experts: sent.splits.at(-1)!,
        held: sent.splits.at(-1)! / (sent.splits.length - 1),
        topK: routeOf(sent).params.rule.topK,
      }
      : {},
  });
  return tiling && { ...tiling, by: grouped?.received.tokenSize ?? all };
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
