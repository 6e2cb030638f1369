/** The selection of the keys that a token attends to. */

import { isHalf, type StoredDType } from "../../../spec/dtype.ts";
import type { Node, NodeOf } from "../../graph/graph.ts";
import { rowsGrid } from "../../kernels/rows.ts";
import {
  scoreKeys,
  scoreKeysGrid,
  selectKeys,
} from "../../kernels/attention/select_keys.ts";
import { operandBuffers } from "./attention.ts";
import { addLaunch, addScratch, type Lowering, sizeOf } from "./context.ts";
import { storageFor } from "./storage.ts";
import { tokenCount } from "./tokens.ts";

/** Two launches: scores of all keys that a token sees, and the best of them. */
export function lowerSelectKeys(
  lowering: Lowering,
  node: NodeOf<"selectKeys">,
): void {
  const [query, weights, keys, sequence, last, pages] = node
    .inputs as [Node, Node, Node, Node, Node, Node?];
  const { token, head, dim, context, k } = node.params;
  const size = (axis: string) => lowering.placed.axes[axis]!.size;
  const { stored, bindings } = readsOfIndex(lowering, {
    query: [query, [token, head, dim]],
    keys,
    sequence: [sequence, [token]],
    pages,
  });
  const common = {
    context: size(context),
    tokens: tokenCount(lowering, [token]),
  };
  const options = {
    ...common,
    name: `scoreKeys_${size(head)}x${size(dim)}`,
    heads: size(head),
    dim: size(dim),
    ...isHalf(stored) ? { stored } : {},
    ...pages ? { pages: { size: size(keys.axes[1]!) } } : {},
  };
  const scores = addScratch(lowering, "scores", "f32", [token, context]);
  const tokens = sizeOf(lowering, [token]);
  const at = operandBuffers(lowering, { last: [last, [token]] });
  addLaunch(lowering, node, scoreKeys(options), {
    bindings: {
      ...bindings,
      ...operandBuffers(lowering, { weights: [weights, [token, head]] }),
      ...at,
      scores,
    },
    workgroups: scoreKeysGrid(options, tokens),
  });
  addLaunch(
    lowering,
    node,
    selectKeys({ ...common, name: `selectKeys_${k}`, k }),
    {
      bindings: {
        ...at,
        scores,
        selected: storageFor(lowering, node).buffer,
      },
      workgroups: rowsGrid(tokens),
    },
  );
}

/** An operand and its axes. */
type Operand = readonly [node: Node, axes: readonly string[]];

/** The operands of scores of keys or of blocks of keys. `stored`: dtype of the stored cache. */
export function readsOfIndex(
  lowering: Lowering,
  { query, keys, sequence, pages }: {
    readonly query: Operand;
    readonly keys: Node;
    readonly sequence: Operand;
    readonly pages: Node | undefined;
  },
): {
  readonly stored: StoredDType;
  readonly bindings: { readonly [binding: string]: string };
} {
  const { buffer, dtype: stored } = lowering.values.storages.get(keys)!;
  const bindings = {
    ...operandBuffers(lowering, {
      query,
      sequence,
      pages: pages && [pages, pages.axes],
      keys: !isHalf(stored) && [keys, keys.axes],
    }),
    ...isHalf(stored) ? { keys: buffer } : {},
  };
  return { stored, bindings };
}
