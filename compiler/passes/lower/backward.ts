/** What only derivatives are made of: sums over rows, rows summed by index, returned rows, attention backwards. */

import { ModelError } from "../../../spec/errors.ts";
import { add, load, mul, u32 } from "../../../spec/kernel/build.ts";
import type { Expr, Kernel, Stmt } from "../../../spec/kernel/tree.ts";
import type { Node, NodeOf } from "../../graph/graph.ts";
import {
  attentionSum,
  type BackwardOptions,
  keyGrad,
  queryGrad,
} from "../../kernels/attention_backward.ts";
import { elementwiseGrid } from "../../kernels/elementwise.ts";
import { rowStarts } from "../../kernels/expert_outer.ts";
import { matmul } from "../../kernels/matmul.ts";
import { matmulGrid, type MatmulOptions } from "../../kernels/matmul_tile.ts";
import { combineTranspose } from "../../kernels/permute.ts";
import { reduce } from "../../kernels/reduce.ts";
import { segmentCells, segmentSum } from "../../kernels/segment_sum.ts";
import { sentBy } from "./assign.ts";
import { type At, atFlat, atMapped } from "./at.ts";
import {
  addLaunch,
  addScratch,
  fixedProduct,
  lengthOf,
  LENGTHS,
  type Lowering,
  productOf,
  sizeOf,
} from "./context.ts";
import { matmulAt } from "./dot.ts";
import { writeTarget } from "./target.ts";
import { rowMajorBuffer } from "./elementwise.ts";
import { emitValue } from "./emit.ts";
import { lowerExpertOuter } from "./expert_outer.ts";
import { atRow, type Places, placesOf } from "./places.ts";
import { KernelScope } from "./scope.ts";
import { storageFor } from "./storage.ts";
import { tokenCount } from "./tokens.ts";

/** A kernel under construction that computes every place of `node`. */
interface Target {
  readonly scope: KernelScope;
  readonly places: Places;
  readonly epilogue: (i: Expr, value: Expr) => Stmt[];
  /** Launch it; each invocation computes so many places. */
  readonly launch: (kernel: Kernel, cells?: number) => void;
}

function targetOf(lowering: Lowering, node: Node): Target {
  const scope = new KernelScope(lowering);
  const storage = storageFor(lowering, node);
  const places = placesOf(scope, node);
  return {
    scope,
    places,
    epilogue: (i, value) =>
      scope.block(() =>
        writeTarget(
          scope,
          { node, storage, roots: [node] },
          places.at(i),
          [value],
        )
      ),
    launch(kernel, cells = 1) {
      const { size } = places;
      const invocations = cells === 1
        ? size
        : typeof size === "number"
        ? size / cells
        : { ceilDiv: [size, cells] } as const;
      addLaunch(lowering, node, kernel, {
        bindings: scope.buffers,
        workgroups: elementwiseGrid(invocations),
      });
    },
  };
}

/** `at`, with the axes `inner` counted by `k`. */
function along(
  scope: KernelScope,
  at: At,
  inner: readonly string[],
  k: Expr,
): At {
  const there = atFlat(inner, k, (axis) => lengthOf(scope, axis));
  return atMapped((axis) => (inner.includes(axis) ? there : at).get(axis));
}

/** A sum of values or products: over rows of a dispatch, expert by expert, or over any axes. */
export function lowerAccumulate(
  lowering: Lowering,
  node: NodeOf<"accumulate">,
): void {
  const group = lowering.model.dispatched.get(node.inputs[0]!);
  const { over } = node.params;
  if (group && over.includes(group.params.slot)) {
    return lowerSumRows(lowering, node, group as NodeOf<"group">);
  }
  const [x, y] = node.inputs as [Node, Node?];
  if (y && isOuter(lowering, node, x, y)) return lowerOuter(lowering, node);
  const { scope, places, epilogue, launch } = targetOf(lowering, node);
  const kernel = reduce({
    name: `accumulate_${over.join("_")}`,
    kind: "sum",
    count: places.count,
    length: productOf(scope, over),
    bindings: scope.bindings,
    terms: (i, k) => {
      const at = along(scope, places.at(i), over, k);
      return node.inputs.map((input) => emitValue(scope, input, at));
    },
    epilogue,
  });
  launch(kernel);
}

/** Whether a sum of products has rows of one operand and columns of the other, as a matmul has. */
function isOuter(
  { model: { dispatched } }: Lowering,
  node: NodeOf<"accumulate">,
  x: Node,
  y: Node,
): boolean {
  const apart = [node, x, y].every((n) => !dispatched.has(n));
  const { over } = node.params;
  const columns = y.axes.filter((axis) => !over.includes(axis));
  return apart && columns.length > 0 && x.axes.length > over.length &&
    columns.every((axis) => !x.axes.includes(axis));
}

/** The same sums in tiles: the second operand's rows are those of a matrix on the right. */
function lowerOuter(lowering: Lowering, node: NodeOf<"accumulate">): void {
  const scope = new KernelScope(lowering);
  const [x, y] = node.inputs as [Node, Node];
  const { over } = node.params;
  const rows = x.axes.filter((axis) => !over.includes(axis));
  const columns = y.axes.filter((axis) => !over.includes(axis));
  const width = fixedProduct(lowering, node, columns);
  const right = rowMajorBuffer(lowering, y, [...over, ...columns]);
  const storage = storageFor(lowering, node);
  const length = (axis: string) => lengthOf(scope, axis);
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
      const [outer, inner] = [
        atFlat(rows, row, length),
        atFlat(over, k, length),
      ];
      return emitValue(
        scope,
        x,
        atMapped((axis) => (over.includes(axis) ? inner : outer).get(axis)),
      );
    },
    epilogue: ({ row, column }, sums) =>
      scope.block(() =>
        writeTarget(
          scope,
          { node, storage, roots: [node] },
          matmulAt(rows, columns, { row, column, width, length }),
          sums,
        )
      ),
  };
  addLaunch(lowering, node, matmul(options), {
    bindings: scope.buffers,
    workgroups: matmulGrid(options, sizeOf(lowering, rows)),
  });
}

/** One launch for all experts: each result sums the rows of its own. */
function lowerSumRows(
  lowering: Lowering,
  node: NodeOf<"accumulate">,
  group: NodeOf<"group">,
): void {
  const grouped = lowering.values.groups.get(group)!;
  const { expert, slot } = group.params;
  const { over } = node.params;
  const startsHere = () => startsOf(lowering, node, group);
  const inTiles = lowerExpertOuter(
    lowering,
    node,
    grouped,
    startsHere,
  );
  if (inTiles) return;
  const byExpert = node.axes.includes(expert);
  const starts = byExpert ? startsHere() : undefined;
  const { scope, places, epilogue, launch } = targetOf(lowering, node);
  const inner = over.filter((axis) => axis !== slot && axis !== expert);
  if (inner.length > 0) {
    throw new ModelError(
      `Cannot compile a gradient over '${over.join(" ")}': rows and '${
        inner.join(" ")
      }' are summed at once. Sum over '${inner.join(" ")}' in the model`,
      node.span,
    );
  }
  const kernel = reduce({
    name: `sum_rows_${node.axes.join("_")}`,
    kind: "sum",
    count: places.count,
    bindings: scope.bindings,
    length: (i) => {
      if (starts === undefined) {
        return [u32(0), load(scope.read(grouped.rowCount), u32(0), "u32")];
      }
      const at = places.at(i);
      const own = at.get(expert);
      const binding = scope.read(starts);
      return [
        load(binding, own, "u32"),
        load(binding, add(own, u32(1)), "u32"),
      ];
    },
    terms: (i, row) => {
      const inner = atMapped((axis) => places.at(i).get(axis));
      const at = atRow(scope, inner, { grouped, row });
      return node.inputs.map((input) => emitValue(scope, input, at));
    },
    epilogue,
  });
  launch(kernel);
}

/** Where the rows of each expert start; made once for each routing. */
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

/** Rows summed where their index is. */
export function lowerScatterAdd(
  lowering: Lowering,
  node: NodeOf<"scatterAdd">,
): void {
  const [rows, ids] = node.inputs as [Node, Node];
  const { over } = node.params;
  const summed = rows.axes.filter((axis) => !node.axes.includes(axis));
  const { scope, places, epilogue, launch } = targetOf(lowering, node);
  const value = (input: Node) => (i: Expr, k: Expr) =>
    emitValue(scope, input, along(scope, places.at(i), summed, k));
  const inner = node.axes.slice(node.axes.indexOf(over) + 1);
  const sizes = inner.map((axis) => sizeOf(lowering, [axis]));
  const together = sizes.every((size) => typeof size === "number") &&
    !inner.some((axis) => ids.axes.includes(axis));
  const width = together ? fixedProduct(lowering, node, inner) : 1;
  const kernel = segmentSum({
    name: `scatter_${over}`,
    ...{ count: places.count, width },
    length: productOf(scope, summed),
    bindings: scope.bindings,
    index: value(ids),
    wanted: (i) => places.at(i).get(over),
    value: value(rows),
    epilogue,
  });
  launch(kernel, segmentCells(width));
}

/** Returned rows, which the combine of the same value adds up. */
export function lowerCombineTranspose(
  lowering: Lowering,
  node: NodeOf<"combineTranspose">,
): void {
  const [returned, assign] = node.inputs as [Node, Node];
  const { route, sendRow } = sentBy(lowering, assign);
  const { tokens, choice } = route.params;
  const width = fixedProduct(lowering, node, returned.axes.slice(2));
  const { scope, epilogue, launch } = targetOf(lowering, node);
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

function backwardOptions(
  lowering: Lowering,
  node: NodeOf<"attentionSum"> | NodeOf<"attentionGrad">,
): BackwardOptions {
  const { scale, window, chunk, shared, sinks } = node.params;
  const { token, head, dim, valueDim, kvHead, context } = node.params;
  const size = (axis: string) => lowering.placed.axes[axis]!.size;
  const what = "of" in node.params ? `_${node.params.of}` : "";
  return {
    name: `${node.primitive}${what}_${size(head)}x${size(dim)}`,
    heads: size(head),
    kvHeads: kvHead === undefined ? 1 : size(kvHead),
    dim: size(dim),
    valueDim: size(valueDim),
    ...{ shared, sinks, scale },
    context: size(context),
    ...(window === undefined ? {} : { window }),
    ...(chunk === undefined ? {} : { chunk }),
    tokens: tokenCount(lowering, [token]),
  };
}

/** The axes of a cache with its heads, if it has any, last. */
function headsInnermost(
  { axes }: Node,
  kvHead: string | undefined,
): readonly string[] {
  return kvHead === undefined
    ? axes
    : [...axes.filter((axis) => axis !== kvHead), kvHead];
}

/** The logarithm of the sum of a query's exponentials, for all heads. */
export function lowerAttentionSum(
  lowering: Lowering,
  node: NodeOf<"attentionSum">,
): void {
  const [q, keys, sequence, position, sinks] = node.inputs as [
    Node,
    Node,
    Node,
    Node,
    Node?,
  ];
  const { token, head, dim } = node.params;
  const buffer = (input: Node, axes: readonly string[]) =>
    rowMajorBuffer(lowering, input, axes);
  addLaunch(lowering, node, attentionSum(backwardOptions(lowering, node)), {
    bindings: {
      lengths: LENGTHS,
      q: buffer(q, [token, dim, head]),
      keys: buffer(keys, headsInnermost(keys, node.params.kvHead)),
      sequence: buffer(sequence, [token]),
      position: buffer(position, [token]),
      ...(sinks ? { sinks: buffer(sinks, [head]) } : {}),
      y: storageFor(lowering, node).buffer,
    },
    workgroups: elementwiseGrid(sizeOf(lowering, [token, head])),
  });
}

/** The cotangent of queries, keys or values. */
export function lowerAttentionGrad(
  lowering: Lowering,
  node: NodeOf<"attentionGrad">,
): void {
  const [q, keys, values, place, dy, statistics] = node
    .inputs as [Node, Node, Node, Node, Node, Node];
  const { token, head, dim, valueDim, kvHead, shared, of } = node.params;
  const options = backwardOptions(lowering, node);
  const buffer = (input: Node, axes: readonly string[]) =>
    rowMajorBuffer(lowering, input, axes);
  const kernel = of === "query" ? queryGrad(options) : keyGrad(options, of);
  const invocations = of === "query" ? head : kvHead;
  addLaunch(lowering, node, kernel, {
    bindings: {
      lengths: LENGTHS,
      q: buffer(q, [token, dim, head]),
      keys: buffer(keys, headsInnermost(keys, kvHead)),
      ...(shared
        ? {}
        : { values: buffer(values, headsInnermost(values, kvHead)) }),
      place: buffer(place, [token]),
      dy: buffer(dy, [token, valueDim, head]),
      statistics: buffer(statistics, statistics.axes),
      y: storageFor(lowering, node).buffer,
    },
    workgroups: elementwiseGrid(
      sizeOf(
        lowering,
        invocations === undefined ? [token] : [token, invocations],
      ),
    ),
  });
}
