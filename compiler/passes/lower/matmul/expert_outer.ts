/** The gradient of experts' weights, in tiles: products of dispatched rows, summed per expert. */

import { add, load, u32 } from "../../../../spec/kernel/build.ts";
import type { Expr } from "../../../../spec/kernel/tree.ts";
import type { Node, NodeOf } from "../../../graph/graph.ts";
import {
  expertOuter,
  expertOuterGrid,
  type ExpertOuterOptions,
} from "../../../kernels/matmul/expert_outer.ts";
import { atFlat, atJoined, atWith } from "../indices.ts";
import { fixedProduct, lengthOf, type Lowering } from "../context.ts";
import { writeTarget } from "../epilogue.ts";
import { emitValue } from "../emit.ts";
import type { GroupedRows } from "../routing/group.ts";
import { atRow, restAxes } from "../index_space.ts";
import { KernelScope } from "../scope.ts";
import { storageFor } from "../storage.ts";

/** The row and column axes of such a sum. Undefined if it has another form. */
function sidesOf(
  node: NodeOf<"reduceSum">,
  { expert }: GroupedRows,
): { rows: string[]; columns: string[] } | undefined {
  const [x, y] = node.inputs;
  if (!x || !y || !node.axes.includes(expert)) {
    return undefined;
  }
  const [rows, columns] = [restAxes(x), restAxes(y)];
  const shared = rows.some((axis) => columns.includes(axis));
  const isComplete = rows.length + columns.length + 1 === node.axes.length;
  return shared || !isComplete || rows.length * columns.length === 0
    ? undefined
    : { rows, columns };
}

/**
 * Lowers a sum with rows of one operand and columns of the other. Returns false if it has another form. Creates
 * `starts` only if it has not.
 */
export function lowerExpertOuter(
  lowering: Lowering,
  node: NodeOf<"reduceSum">,
  grouped: GroupedRows,
  startsOf: () => string,
): boolean {
  const sides = sidesOf(node, grouped);
  if (sides === undefined) return false;
  const { rows, columns } = sides;
  const starts = startsOf();
  const scope = new KernelScope(lowering);
  const [x, y] = node.inputs as [Node, Node];
  const storage = storageFor(lowering, node);
  const { expert } = grouped;
  const experts = lowering.placed.axes[expert]!.size;
  const value =
    (input: Node, axes: readonly string[]) => (i: Expr, row: Expr) => {
      const at = atRow(scope, atFlat(scope, axes, i), { grouped, row });
      return emitValue(scope, input, at);
    };
  const [height, width] = [rows, columns].map((axes) =>
    fixedProduct(lowering, node, axes)
  ) as [number, number];
  const options: ExpertOuterOptions = {
    name: `outer_experts_${height}x${width}`,
    experts,
    localExperts: lengthOf(scope, expert),
    rows: height,
    columns: width,
    tile: lowering.options.tile,
    bindings: scope.bindings,
    range: (i) => {
      const binding = scope.read(starts);
      return [
        load(binding, i, "u32"),
        load(binding, add(i, u32(1)), "u32"),
      ];
    },
    left: value(x, rows),
    right: value(y, columns),
    block: (make) => scope.block(make),
    epilogue: (at, sum) => {
      const row = atFlat(scope, rows, at.row);
      const column = atFlat(scope, columns, at.column);
      const inner = atJoined(rows, row, column);
      const target = atWith(inner, expert, () => at.expert);
      return writeTarget({ scope, node, storage }, target, [sum]);
    },
  };
  scope.launch(node, expertOuter(options), expertOuterGrid(options));
  return true;
}
