/** Parts of derivatives: sums over rows, rows summed by index, returned rows. */

import { ModelError } from "../../../spec/errors.ts";
import { add, load, mul, u32 } from "../../../spec/kernel/build.ts";
import type { Expr } from "../../../spec/kernel/tree.ts";
import type { Node, NodeOf } from "../../graph/graph.ts";
import { elementwiseGrid } from "../../../spec/kernel/elementwise.ts";
import { rowStarts } from "../../kernels/matmul/expert_outer.ts";
import { matmul } from "../../kernels/matmul/matmul.ts";
import type { MatmulOptions } from "../../kernels/matmul/options.ts";
import { matmulGrid } from "../../tuning/lanes.ts";
import { combineTranspose } from "../../kernels/routing/permute.ts";
import { reduce } from "../../kernels/reduce.ts";
import { segmentCells, segmentSum } from "../../kernels/segment_sum.ts";
import { routeOf, sentBy } from "./routing/assign.ts";
import { atFlat, atJoined } from "./indices.ts";
import {
  addLaunch,
  addScratch,
  fixedProduct,
  type Lowering,
  productOf,
  sizeOf,
} from "./context.ts";
import { matmulAt } from "./matmul/operands.ts";
import { resultOf, writeTarget } from "./epilogue.ts";
import { rowMajorBuffer } from "./elementwise.ts";
import { emitValue } from "./emit.ts";
import { lowerExpertOuter } from "./matmul/expert_outer.ts";
import { atRow } from "./index_space.ts";
import { KernelScope } from "./scope.ts";
import { storageFor } from "./storage.ts";

/** A sum of values or products: over rows of a dispatch, per expert, or over any axes. */
export function lowerReduceSum(
  lowering: Lowering,
  node: NodeOf<"reduceSum">,
): void {
  const group = lowering.model.dispatched.get(node.inputs[0]!);
  const { over } = node.params;
  if (group && over.includes(group.params.slot)) {
    return lowerSumRows(lowering, node, group as NodeOf<"group">);
  }
  const [x, y] = node.inputs as [Node, Node?];
  if (y && isOuter(lowering, node, x, y)) return lowerOuter(lowering, node);
  const { scope, space, epilogue, launch } = resultOf(lowering, node);
  launch(reduce({
    name: `reduce_sum_${over.join("_")}`,
    kind: "sum",
    count: space.count,
    length: productOf(scope, over),
    bindings: scope.bindings,
    epilogue,
    terms: (i, k) => {
      const at = atJoined(over, atFlat(scope, over, k), space.at(i));
      return node.inputs.map((input) => emitValue(scope, input, at));
    },
  }));
}

/** Whether a sum of products has rows of one operand and columns of the other, like a matmul. */
function isOuter(
  { model: { dispatched } }: Lowering,
  node: NodeOf<"reduceSum">,
  x: Node,
  y: Node,
): boolean {
  const apart = [node, x, y].every((n) => !dispatched.has(n));
  const { over } = node.params;
  const columns = y.axes.filter((axis) => !over.includes(axis));
  return apart && columns.length > 0 && x.axes.length > over.length &&
    columns.every((axis) => !x.axes.includes(axis));
}

/** The same sums in tiles. The rows of the second operand are those of a right matrix. */
function lowerOuter(lowering: Lowering, node: NodeOf<"reduceSum">): void {
  const scope = new KernelScope(lowering);
  const [x, y] = node.inputs as [Node, Node];
  const { over } = node.params;
  const rows = x.axes.filter((axis) => !over.includes(axis));
  const columns = y.axes.filter((axis) => !over.includes(axis));
  const width = fixedProduct(lowering, node, columns);
  const right = rowMajorBuffer(lowering, y, [...over, ...columns]);
  const storage = storageFor(lowering, node);
  const to = { scope, node, storage };
  const options: MatmulOptions = {
    name: `outer_${over.join("_")}_${width}`,
    k: productOf(scope, over),
    columns: width,
    bindings: scope.bindings,
    weights: [{
      binding: scope.read(right),
      stored: lowering.draft.buffers.get(right)!.dtype,
      rowStride: width,
    }],
    tile: lowering.options.tile,
    rows: productOf(scope, rows),
    leftRow: (row) => row,
    left: (row, k) => {
      const [outer, inner] = [atFlat(scope, rows, row), atFlat(scope, over, k)];
      return emitValue(scope, x, atJoined(over, inner, outer));
    },
    epilogue: (at, sums) =>
      writeTarget(to, matmulAt(scope, { rows, columns, width }, at), sums),
  };
  const grid = matmulGrid(options, sizeOf(lowering, rows));
  scope.launch(node, matmul(options), grid);
}

/** One launch for all experts. Each result sums the rows of its expert. */
function lowerSumRows(
  lowering: Lowering,
  node: NodeOf<"reduceSum">,
  group: NodeOf<"group">,
): void {
  const grouped = lowering.values.groups.get(group)!;
  const { expert, slot } = group.params;
  const { over } = node.params;
  const startsHere = () => startsOf(lowering, node, group);
  if (lowerExpertOuter(lowering, node, grouped, startsHere)) return;
  const byExpert = node.axes.includes(expert);
  const starts = byExpert ? startsHere() : undefined;
  const { scope, space, epilogue, launch } = resultOf(lowering, node);
  const inner = over.filter((axis) => axis !== slot && axis !== expert);
  if (inner.length > 0) {
    throw new ModelError(
      `Cannot compile a gradient over '${over.join(" ")}': rows and '${
        inner.join(" ")
      }' are summed at once. Sum over '${inner.join(" ")}' in the model`,
      node.span,
    );
  }
  launch(reduce({
    name: `sum_rows_${node.axes.join("_")}`,
    kind: "sum",
    count: space.count,
    bindings: scope.bindings,
    epilogue,
    length: (i) => {
      if (starts === undefined) {
        return [u32(0), load(scope.read(grouped.rowCount), u32(0), "u32")];
      }
      const at = space.at(i);
      const index = at.get(expert);
      const binding = scope.read(starts);
      return [
        load(binding, index, "u32"),
        load(binding, add(index, u32(1)), "u32"),
      ];
    },
    terms: (i, row) => {
      const { get } = space.at(i);
      const at = atRow(scope, { get }, { grouped, row });
      return node.inputs.map((input) => emitValue(scope, input, at));
    },
  }));
}

/** The first row of each expert, created once per routing. */
function startsOf(
  lowering: Lowering,
  node: Node,
  group: NodeOf<"group">,
): string {
  const known = lowering.values.rowStarts.get(group);
  if (known) return known;
  const { expert } = group.params;
  const experts = lowering.placed.axes[expert]!.size;
  const starts = addScratch(lowering, "rowStarts", "u32", [
    { axis: `${expert} and end`, size: experts + 1 },
  ]);
  const { expertOf, rowCount } = lowering.values.groups.get(group)!;
  addLaunch(lowering, node, rowStarts(`row_starts_${experts}`, experts), {
    bindings: { expertOf, rowCount, starts },
    workgroups: elementwiseGrid(experts + 1),
  });
  lowering.values.rowStarts.set(group, starts);
  return starts;
}

/** Rows summed by index. */
export function lowerScatterAdd(
  lowering: Lowering,
  node: NodeOf<"scatterAdd">,
): void {
  const [rows, ids] = node.inputs as [Node, Node];
  const { over } = node.params;
  const summed = rows.axes.filter((axis) => !node.axes.includes(axis));
  const { scope, space, epilogue, launch } = resultOf(lowering, node);
  const value = (input: Node) => (i: Expr, k: Expr) =>
    emitValue(
      scope,
      input,
      atJoined(summed, atFlat(scope, summed, k), space.at(i)),
    );
  const inner = node.axes.slice(node.axes.indexOf(over) + 1);
  const sizes = inner.map((axis) => sizeOf(lowering, [axis]));
  const together = sizes.every((size) => typeof size === "number") &&
    !inner.some((axis) => ids.axes.includes(axis));
  const width = together ? fixedProduct(lowering, node, inner) : 1;
  const kernel = segmentSum({
    name: `scatter_${over}`,
    count: space.count,
    width,
    length: productOf(scope, summed),
    bindings: scope.bindings,
    index: value(ids),
    wanted: (i) => space.at(i).get(over),
    value: value(rows),
    epilogue,
  });
  launch(kernel, segmentCells(width));
}

/** Returned rows, which the combine of the same value adds. */
export function lowerCombineTranspose(
  lowering: Lowering,
  node: NodeOf<"combineTranspose">,
): void {
  const [returned, assign] = node.inputs as [Node, Node];
  const rows = sentBy(lowering, assign);
  const { sendRow } = rows;
  const { tokens, choice } = routeOf(rows).params;
  const width = fixedProduct(lowering, node, returned.axes.slice(2));
  const { scope, epilogue, launch } = resultOf(lowering, node);
  scope.readAs("returned", lowering.values.storages.get(returned)!.buffer);
  scope.readAs("sendRow", sendRow);
  const kernel = combineTranspose({
    name: `combineTranspose_${width}`,
    width,
    count: mul(productOf(scope, [...tokens, choice]), u32(width)),
    bindings: scope.bindings,
    epilogue,
  });
  launch(kernel);
}
