/** Permutes tokens into send order, and combines returned rows into tokens. */

import type { Size } from "../../../../spec/size.ts";
import type { Node, NodeOf } from "../../../graph/graph.ts";
import { unitSplits } from "../../expert_ranges.ts";
import { elementwiseGrid } from "../../../../spec/kernel/elementwise.ts";
import { reads } from "../../../kernels/kernel.ts";
import {
  combine,
  permute,
  permuteOne,
  permuteOneGroups,
} from "../../../kernels/routing/permute.ts";
import { div, load, mul, rem, u32 } from "../../../../spec/kernel/build.ts";
import { partOf, routeOf, sentBy } from "./assign.ts";
import { atFlat, atJoined } from "../indices.ts";
import {
  addLaunch,
  addScratch,
  amendBuffer,
  fixedProduct,
  type Lowering,
  productOf,
  sizeOf,
} from "../context.ts";
import { writeTarget } from "../epilogue.ts";
import { rowMajorBuffer } from "../elementwise.ts";
import { finish } from "../emit.ts";
import { forRows } from "../matmul/inline_norms.ts";
import { lowerOneToken } from "./one_token.ts";
import { routeResults } from "./route.ts";
import { KernelScope, wordType } from "../scope.ts";
import { sentRows } from "../collectives/round.ts";
import { storageFor } from "../storage.ts";
import { tokenCount } from "../tokens.ts";

/** A row per choice, or per token and destination rank. */
export function lowerPermute(
  lowering: Lowering,
  node: NodeOf<"permute">,
): void {
  const [x, assign] = node.inputs as [Node, Node];
  const rows = sentBy(lowering, assign);
  const { weighted, once } = node.params;
  const { tokens, rule: { topK } } = routeOf(rows).params;
  const [expert, slot, ...rest] = node.axes;
  const { words, dtype, axes, wire } = sentRows(lowering, node, x);
  const send = addScratch(lowering, "sent", dtype, [
    {
      axis: `${expert} ${slot}`,
      size: once ? rows.tokens!.bound : rows.bound,
      dynamic: true,
    },
    ...axes,
  ]);
  const kernel = permute({
    name: `permute_${words}`,
    row: words,
    k: topK,
    tokens: tokenCount(lowering, tokens),
    type: wordType(dtype),
    ...weighted
      ? {
        bindings: [reads("x"), reads("weight")],
        value: (i, choice) =>
          finish(node as Node, mul(load("x", i), load("weight", choice))),
      }
      : {},
  });
  const from = wire
    ? lowering.values.storages.get(x)!.buffer
    : rowMajorBuffer(lowering, x, x.axes);
  const all = sizeOf(lowering, tokens);
  const isApart = lowering.options.tuning.wideRows === true && !weighted &&
    typeof all !== "number";
  if (isApart) {
    const one = {
      name: `permute_one_${words}`,
      row: words,
      rows: once ? Math.min(topK, unitSplits(rows.chunks).length - 1) : topK,
      type: wordType(dtype),
    };
    amendBuffer(lowering, send, { writers: 2 });
    // Without a part, it may share the launch of another step before the exchange.
    addLaunch(lowering, node, permuteOne(one), {
      bindings: { x: from, send },
      workgroups: [forRows(all, { rows: all }).few, permuteOneGroups(one), 1],
    });
  }
  const sent: Size = { mul: [rows.size, words] };
  addLaunch(lowering, node, kernel, {
    bindings: {
      send,
      x: from,
      ...weighted
        ? { weight: routeResults(lowering, routeOf(rows)).weight }
        : {},
      sendRow: once ? rows.tokens!.tokenRow : rows.sendRow,
    },
    workgroups: elementwiseGrid(
      isApart ? forRows(sent, { rows: all }).more : sent,
    ),
    part: partOf(rows, "permute"),
  });
  lowering.values.storages.set(node, {
    buffer: send,
    dtype,
    axes: rest,
    ...wire ? { wire } : {},
  });
}

/** The weighted sum of the rows of a token in the order of its choices, with its epilogue. */
export function lowerCombine(
  lowering: Lowering,
  target: Node,
  node: NodeOf<"combine">,
): void {
  const [returned, assign] = node.inputs as [Node, Node];
  const rows = sentBy(lowering, assign);
  const { tokens, rule: { topK } } = routeOf(rows).params;
  const rest = node.axes.slice(tokens.length);
  const words = fixedProduct(lowering, node, rest);
  const scope = new KernelScope(lowering);
  const storage = storageFor(lowering, target);
  const { buffer, wire } = lowering.values.storages.get(returned)!;
  scope.readAs("returned", buffer);
  scope.readAs(
    "sendRow",
    node.params.once ? rows.tokens!.tokenRow : rows.sendRow,
  );
  const weighed = node.params.weighted!;
  if (weighed) {
    scope.readAs("weight", routeResults(lowering, routeOf(rows)).weight);
  }
  const kernel = combine({
    name: `combine_${words}`,
    row: words,
    k: topK,
    tokens: productOf(scope, tokens),
    weighed,
    ...wire ? { wire } : {},
    bindings: scope.bindings,
    epilogue: (index, sum) => {
      const outer = atFlat(scope, tokens, div(index, u32(words)));
      const inner = atFlat(scope, rest, rem(index, u32(words)));
      const flat = { order: node.axes, index };
      const at = { ...atJoined(rest, inner, outer), flat };
      const to = { scope, node: target, storage, roots: [node] };
      return writeTarget(to, at, [sum]);
    },
  });
  const grid = elementwiseGrid(sizeOf(lowering, node.axes));
  scope.launch(target, kernel, grid, partOf(rows, "combine", "combine"));
  lowerOneToken(lowering, { target, combine: node, storage });
}
