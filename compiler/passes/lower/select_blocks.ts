/** The selection of the blocks of keys that a token attends to. */

import { isHalf } from "../../../spec/dtype.ts";
import type { Node, NodeOf } from "../../graph/graph.ts";
import {
  scoreBlocks,
  scoreBlocksGrid,
} from "../../kernels/attention/score_blocks.ts";
import { selectKeys } from "../../kernels/attention/select_keys.ts";
import { rowsGrid } from "../../kernels/rows.ts";
import { operandBuffers } from "./attention.ts";
import { addLaunch, addScratch, type Lowering, sizeOf } from "./context.ts";
import { readsOfIndex } from "./select_keys.ts";
import { storageFor } from "./storage.ts";
import { tokenCount } from "./tokens.ts";

/** Two launches: scores of the blocks that a token sees, and the best of them. */
export function lowerSelectBlocks(
  lowering: Lowering,
  node: NodeOf<"selectBlocks">,
): void {
  const [query, keys, sequence, position, pages] = node
    .inputs as [Node, Node, Node, Node, Node?];
  const { token, head, dim, context, k, block, first, local } = node.params;
  const size = (axis: string) => lowering.placed.axes[axis]!.size;
  const { stored, bindings } = readsOfIndex(lowering, {
    query: [query, [token, head, dim]],
    keys,
    sequence: [sequence, [token]],
    pages,
  });
  const tokens = tokenCount(lowering, [token]);
  const blocks = Math.ceil(size(context) / block);
  const options = {
    name: `scoreBlocks_${size(head)}x${size(dim)}`,
    context: size(context),
    tokens,
    heads: size(head),
    dim: size(dim),
    block,
    first,
    local,
    k,
    ...isHalf(stored) ? { stored } : {},
    ...pages ? { pages: { size: size(keys.axes[1]!) } } : {},
  };
  const scores = addScratch(lowering, "scores", "f32", [
    token,
    head,
    { axis: "scored block", size: blocks },
  ]);
  const last = operandBuffers(lowering, { last: [position, [token]] });
  addLaunch(lowering, node, scoreBlocks(options), {
    bindings: {
      ...bindings,
      ...last,
      scores,
    },
    workgroups: scoreBlocksGrid(options, sizeOf(lowering, [token])),
  });
  const select = selectKeys({
    name: `selectBlocks_${k}`,
    context: blocks,
    k,
    tokens,
    blocks: { heads: size(head), size: block },
  });
  addLaunch(lowering, node, select, {
    bindings: {
      ...last,
      scores,
      selected: storageFor(lowering, node).buffer,
    },
    workgroups: rowsGrid(sizeOf(lowering, [token, head])),
  });
}
