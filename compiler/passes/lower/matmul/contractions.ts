/** Launches of contractions with batch axes for many rows, with 16-bit operands. */

import {
  add,
  div,
  lt,
  mul,
  rem,
  select,
  u32,
} from "../../../../spec/kernel/build.ts";
import {
  elementwise,
  elementwiseGrid,
} from "../../../../spec/kernel/elementwise.ts";
import type { Expr, Stmt } from "../../../../spec/kernel/tree.ts";
import type { Size } from "../../../../spec/size.ts";
import type { Node, NodeOf } from "../../../graph/graph.ts";
import { contractMatrices } from "../../../kernels/matmul/contractions.ts";
import { isUneven } from "../../../sharding/lengths.ts";
import { matrixGrid, matrixTiling } from "../../../tuning/matrices.ts";
import { fixedProduct, type Lowering, productOf, sizeOf } from "../context.ts";
import { dotShape } from "./dot_shape.ts";
import { emitValue } from "../emit.ts";
import { type Target, writeTarget } from "../epilogue.ts";
import { type At, atFlat, atJoined, atWith } from "../indices.ts";
import { forRows } from "./inline_norms.ts";
import { joinedPart } from "../joined.ts";
import type { MatrixForm } from "./rows.ts";
import { KernelScope } from "../scope.ts";

/**
 * The form of a contraction for many rows. Undefined if it has none: operands have 32 bits, the right one depends on
 * tokens, rows are dispatched, or sizes do not fit.
 */
export function contractForm(
  lowering: Lowering,
  node: NodeOf<"dot">,
): MatrixForm | undefined {
  const { model, placed, options } = lowering;
  const { batch, over, rows, columns } = dotShape(node);
  if (
    options.operands === "f32" || batch.length === 0 ||
    model.dispatched.has(node)
  ) {
    return undefined;
  }
  const isFixed = [...batch, ...over, ...columns].every((axis) => {
    const length = placed.axes[axis]!;
    return !length.dynamic && !isUneven(placed, length);
  });
  const isMany = rows.some((axis) => placed.axes[axis]!.dynamic);
  if (!isFixed || !isMany) return undefined;
  const [k, width] = [over, columns].map((axes) =>
    fixedProduct(lowering, node, axes)
  ) as [number, number];
  const tiling = matrixTiling(
    { weights: 1, k, columns: width },
    { memory: options.maxShared },
  );
  return tiling && { ...tiling, by: sizeOf(lowering, rows) };
}

/**
 * Launches a contraction for many rows. `joined`: the concatenation that contains it, whose other parts another launch
 * stores. Returns the number of launches.
 */
export function launchContract(
  lowering: Lowering,
  node: NodeOf<"dot">,
  { form, target, joined }: {
    readonly form: MatrixForm;
    readonly target: Pick<Target, "node" | "storage">;
    readonly joined: NodeOf<"concat"> | undefined;
  },
): number {
  const { shape, above, by } = form;
  const { batch, over, rows, columns } = dotShape(node);
  const [left, right] = node.inputs as [Node, Node];
  const [k, width, batches] = [over, columns, batch].map((axes) =>
    fixedProduct(lowering, node, axes)
  ) as [number, number, number];
  const scope = new KernelScope(lowering);
  const part = joined && joinedPart(scope, joined, node);
  const elementAt = (b: Expr, axes: readonly string[], index: Expr) =>
    atJoined(axes, atFlat(scope, axes, index), atFlat(scope, batch, b));
  const load = (
    operand: Node,
    at: At,
    { k, store }: {
      readonly k: Expr;
      readonly store: (value: Expr) => Stmt;
    },
  ) =>
    scope.block(() => [
      store(
        emitValue(scope, operand, atJoined(over, atFlat(scope, over, k), at)),
      ),
    ]);
  const kernel = contractMatrices({
    name: `contract_${over.join("_")}`,
    bindings: scope.bindings,
    k,
    columns: width,
    rows: productOf(scope, rows),
    left: (at, store) =>
      load(left, elementAt(at.batch, rows, at.row), { k: at.k, store }),
    right: (at, store) =>
      load(right, elementAt(at.batch, columns, at.column), { k: at.k, store }),
    epilogue: (at, sum) => {
      const inner = elementAt(at.batch, columns, at.column);
      const of = atJoined(rows, atFlat(scope, rows, at.row), inner);
      return writeTarget(
        { scope, ...target },
        part ? part.around(of) : of,
        [sum],
      );
    },
  }, shape);
  const grid = matrixGrid(shape, {
    grouped: false,
    width,
    batches,
    size: forRows(by, { rows: by, most: above }).more,
  });
  scope.launch(target.node, kernel, grid);
  if (!joined) return 1;
  launchOthers(lowering, node, {
    target,
    joined,
    limited: (size) => forRows(size, { rows: by, most: above }).more,
  });
  return 2;
}

/**
 * Launches the parts of a concatenation other than `node`. `limited`: its size, if the number of rows is in a range.
 */
export function launchOthers(
  lowering: Lowering,
  node: NodeOf<"dot">,
  { limited, target, joined }: {
    readonly limited: (size: Size) => Size;
    readonly target: Pick<Target, "node" | "storage">;
    readonly joined: NodeOf<"concat">;
  },
): void {
  const scope = new KernelScope(lowering);
  const part = joinedPart(scope, joined, node);
  const outer = joined.axes.slice(0, -1);
  const count = part.others;
  const size: Size = { mul: [sizeOf(lowering, outer), count] };
  const kernel = elementwise({
    name: `concat_${joined.params.to}`,
    count: mul(productOf(scope, outer), u32(count)),
    bindings: scope.bindings,
    body: (i) =>
      scope.block(() => {
        const at = atWith(
          atFlat(scope, outer, div(i, u32(count))),
          joined.params.to,
          () => {
            const n = rem(i, u32(count));
            const after = add(n, u32(part.length));
            return part.first === 0
              ? after
              : select(lt(n, u32(part.first)), n, after);
          },
        );
        return writeTarget({ scope, ...target }, at, [part.outside(at)]);
      }),
  });
  scope.launch(
    target.node,
    kernel,
    elementwiseGrid(limited(size)),
  );
}

/** Results of a token below which a lane per result leaves most of a wide device idle. */
export const FEW_RESULTS = 32_768;

/** The product of the constant axes of a value. */
export function resultsOfToken({ placed }: Lowering, { axes }: Node): number {
  return axes.map((axis) => placed.axes[axis]!)
    .reduce((n, { dynamic, size }) => dynamic ? n : n * size, 1);
}
