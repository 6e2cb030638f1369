/** Contractions whose right operand is a parameter in its layout: the tiled matmul. */

import type { Node, NodeOf } from "../../../graph/graph.ts";
import { matrixTiling } from "../../../tuning/matrices.ts";
import { tileHeight } from "../../../tuning/tile.ts";
import { routeOf } from "../routing/assign.ts";
import {
  addKernel,
  amendBuffer,
  fixedProduct,
  type Lowering,
  sizeOf,
  type Storage,
} from "../context.ts";
import { targetStorage } from "../epilogue.ts";
import { dotShape } from "./dot_shape.ts";
import { inlineNormOf, launchForAllRows } from "./inline_norms.ts";
import { matmulOf, type MatmulParts, type MatmulShape } from "./launches.ts";
import type { MatrixForm } from "./rows.ts";

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
