/** Gathered keys: the table of their blocks, and the exchange of earlier blocks among ranks that share positions. */

import { STORED_BYTES } from "../../../../spec/dtype.ts";
import { invariant } from "../../../../spec/errors.ts";
import {
  elementwise,
  elementwiseGrid,
} from "../../../../spec/kernel/elementwise.ts";
import {
  add,
  div,
  load,
  mul,
  rem,
  store,
  u32,
} from "../../../../spec/kernel/build.ts";
import type { Expr } from "../../../../spec/kernel/tree.ts";
import { EXACT } from "../../../../spec/numerics.ts";
import { boundOf } from "../../../../spec/plan/bytes.ts";
import type { Node, NodeOf } from "../../../graph/graph.ts";
import { planAxis } from "../../../sharding/lengths.ts";
import { assignmentBuffer } from "../routing/assignment.ts";
import {
  addAllGather,
  addScratch,
  amendBuffer,
  fixedProduct,
  lengthOf,
  type Lowering,
  productOf,
  sizeOf,
} from "../context.ts";
import { pageOf } from "../epilogue.ts";
import { KernelScope, wordType } from "../scope.ts";
import { isPlain } from "../storage.ts";

/** The table of blocks, which the runtime fills. */
export function lowerKeyTable(
  lowering: Lowering,
  node: NodeOf<"keyTable">,
): void {
  const buffer = assignmentBuffer(lowering, node.params.past, {
    holds: "table",
    table: node.axes,
  });
  lowering.values.storages.set(node, { buffer, dtype: "i32", axes: node.axes });
}

/** Copies the rank's earlier blocks that tokens of the step see, and gathers those of all ranks. */
export function lowerGatherKeys(
  lowering: Lowering,
  node: NodeOf<"gatherKeys">,
): void {
  const [cache, table, pages] = node
    .inputs as [Node, NodeOf<"keyTable">, Node?];
  const { past, over } = table.params;
  const stored = lowering.values.storages.get(cache)!;
  invariant(isPlain(stored), "a cache is stored plainly");
  const { dtype } = stored;
  const [blocks, key, ...rest] = node.axes as [string, string, ...string[]];
  const width = fixedProduct(lowering, node, rest) * STORED_BYTES[dtype] / 4;
  const words = EXACT.block * width;
  const packed = addScratch(lowering, "local keys", dtype, [
    past,
    key,
    ...rest,
  ]);
  const blockOf = assignmentBuffer(lowering, past, { holds: "items" });
  const scope = new KernelScope(lowering);
  const type = wordType(dtype);
  const kernel = elementwise({
    name: "localKeys",
    count: mul(productOf(scope, [past]), u32(words)),
    bindings: scope.bindings,
    body: (index) =>
      scope.block(() => {
        const block = scope.bindValue(
          load(scope.read(blockOf), div(index, u32(words)), "u32"),
        );
        const within = scope.bindValue(rem(index, u32(words)));
        const at = scope.bindValue(
          add(mul(block, u32(EXACT.block)), div(within, u32(width))),
        );
        const row = pages ? rowInPages(scope, cache, pages, at) : at;
        const from = add(mul(row, u32(width)), rem(within, u32(width)));
        const value = load(scope.read(stored.buffer), from, type);
        return [store(scope.write(packed), index, value)];
      }),
  });
  scope.launch(
    node,
    kernel,
    elementwiseGrid({ mul: [sizeOf(lowering, [past]), words] }),
  );
  const { placed } = lowering;
  const size = boundOf({ count: past, over: over as [string] }, placed);
  const to = addScratch(lowering, "gathered keys", dtype, [
    { axis: blocks, size: placed.axes[blocks]!.size },
    key,
    ...rest,
  ]);
  invariant(size <= placed.axes[blocks]!.size, "gathered keys have no room");
  // The keys of this step follow.
  amendBuffer(lowering, to, { writers: 2 });
  addAllGather(lowering, node, {
    over,
    from: packed,
    to,
    words,
    rows: {
      axis: planAxis(placed, past),
      counts: assignmentBuffer(lowering, past, { holds: "counts", over }),
    },
  });
  lowering.values.storages.set(node, { buffer: to, dtype, axes: node.axes });
}

/** The row of a paged cache with a position, counted over the sequences of the rank. */
function rowInPages(
  scope: KernelScope,
  cache: Node,
  pages: Node,
  at: Expr,
): Expr {
  const size = lengthOf(scope, cache.axes[1]!);
  const positions = mul(lengthOf(scope, pages.axes[1]!), size);
  const [sequence, position] = [div(at, positions), rem(at, positions)]
    .map((value) => scope.bindValue(value)) as [Expr, Expr];
  const page = pageOf(scope, pages, [sequence, div(position, size)]);
  return scope.bindValue(add(mul(page, size), rem(position, size)));
}
