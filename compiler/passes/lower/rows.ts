/** Reductions along an axis: norms and softmax keep it, sums lose it. */

import { binary } from "../../../spec/kernel/build.ts";
import type { Expr } from "../../../spec/kernel/tree.ts";
import type { Node, NodeOf } from "../../graph/graph.ts";
import { elementwiseGrid } from "../../kernels/elementwise.ts";
import {
  reduce,
  rmsNorm,
  rowsGrid,
  type RowsOptions,
  softmax,
} from "../../kernels/rows.ts";
import { type At, atFlat } from "./at.ts";
import {
  addLaunch,
  fixedProduct,
  lengthOf,
  type Lowering,
  productOf,
  sizeOf,
} from "./context.ts";
import { writeTarget } from "./dot.ts";
import { loadFrom } from "./emit.ts";
import { KernelScope } from "./scope.ts";
import { storageFor } from "./storage.ts";

/** The place in `node` of element `i` along `over` in row `row` of the other axes. */
function rowAt(
  node: Node,
  over: string,
  place: { row: Expr; i: Expr; length: (axis: string) => Expr },
): At {
  const { row, i, length } = place;
  const outer = node.axes.filter((axis) => axis !== over);
  const at = atFlat(outer, row, length);
  const get = (axis: string) => axis === over ? i : at.get(axis);
  if (node.axes.at(-1) !== over) return { get };
  const index: Expr = binary("add", binary("mul", row, length(over)), i);
  return { get, flat: { order: node.axes, index } };
}

interface RowParts {
  readonly scope: KernelScope;
  readonly options: RowsOptions;
}

/** What norms and softmax share: one row per workgroup, the axis kept. */
function rowParts(
  lowering: Lowering,
  node: NodeOf<"softmax"> | NodeOf<"rmsNorm">,
  withGain: boolean,
): RowParts {
  const scope = new KernelScope(lowering);
  const { over } = node.params;
  const x = node.inputs[0]!;
  const source = lowering.storages.get(x)!;
  const storage = storageFor(lowering, node);
  const length = (axis: string) => lengthOf(scope, axis);
  const outer = node.axes.filter((axis) => axis !== over);
  const options: RowsOptions = {
    name: `${node.primitive}_${fixedProduct(lowering, [over])}`,
    rows: productOf(scope, outer),
    length: fixedProduct(lowering, [over]),
    bindings: scope.bindings,
    load: (row, i) =>
      loadFrom(scope, source, rowAt(x, over, { row, i, length })),
    epilogue: (row, i, value) =>
      scope.block(() => {
        const at = rowAt(node, over, { row, i, length });
        const gained = withGain
          ? binary(
            "mul",
            loadFrom(scope, lowering.storages.get(node.inputs[1]!)!, at),
            value,
          )
          : value;
        return writeTarget(scope, { node, storage, roots: [node] }, at, [
          gained,
        ]);
      }),
  };
  return { scope, options };
}

/** gain * x / sqrt(mean(x^2) + epsilon) */
export function lowerRmsNorm(
  lowering: Lowering,
  node: NodeOf<"rmsNorm">,
): void {
  const { scope, options } = rowParts(lowering, node, true);
  launchRows(
    lowering,
    node,
    scope,
    rmsNorm({ ...options, epsilon: node.params.epsilon }),
  );
}

/** exp(x - max) / sum */
export function lowerSoftmax(
  lowering: Lowering,
  node: NodeOf<"softmax">,
): void {
  const { scope, options } = rowParts(lowering, node, false);
  launchRows(lowering, node, scope, softmax(options));
}

function launchRows(
  lowering: Lowering,
  node: NodeOf<"softmax"> | NodeOf<"rmsNorm">,
  scope: KernelScope,
  kernel: ReturnType<typeof softmax>,
): void {
  const outer = node.axes.filter((axis) => axis !== node.params.over);
  addLaunch(lowering, node, kernel, {
    bindings: scope.buffers,
    workgroups: rowsGrid(sizeOf(lowering, outer)),
  });
}

/** Sum, mean or maximum; the axis is lost. */
export function lowerReduce(lowering: Lowering, node: NodeOf<"reduce">): void {
  const scope = new KernelScope(lowering);
  const { over, kind } = node.params;
  const x = node.inputs[0]!;
  const source = lowering.storages.get(x)!;
  const storage = storageFor(lowering, node);
  const length = (axis: string) => lengthOf(scope, axis);
  const kernel = reduce({
    name: kind,
    kind,
    count: productOf(scope, node.axes),
    length: lengthOf(scope, over),
    bindings: scope.bindings,
    load: (row, i) =>
      loadFrom(scope, source, rowAt(x, over, { row, i, length })),
    epilogue: (i, value) =>
      scope.block(() =>
        writeTarget(
          scope,
          { node, storage, roots: [node] },
          atFlat(node.axes, i, length),
          [value],
        )
      ),
  });
  addLaunch(lowering, node, kernel, {
    bindings: scope.buffers,
    workgroups: elementwiseGrid(sizeOf(lowering, node.axes)),
  });
}
