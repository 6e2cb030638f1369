/** Attention over the cache. */

import type { Node, NodeOf } from "../../graph/graph.ts";
import { attention, attentionGrid } from "../../kernels/attention.ts";
import { addLaunch, LENGTHS, type Lowering, sizeOf } from "./context.ts";
import { rowMajorBuffer } from "./elementwise.ts";
import { storageFor } from "./storage.ts";
import { tokenCount } from "./tokens.ts";

/** One launch; queries, keys and values lie in the order that the kernel wants. */
export function lowerAttention(
  lowering: Lowering,
  node: NodeOf<"attention">,
): void {
  const [q, keys, values, sequence, position] = node.inputs as [
    Node,
    Node,
    Node,
    Node,
    Node,
  ];
  const { scale, window, token, head, dim, kvHead, context } = node.params;
  const buffer = (input: Node, axes: readonly string[]) =>
    rowMajorBuffer(lowering, input, axes);
  const size = (axis: string) => lowering.placed.axes[axis]!.size;
  const kernel = attention({
    name: `attention_${size(head)}x${size(dim)}`,
    heads: size(head),
    kvHeads: size(kvHead),
    dim: size(dim),
    context: size(context),
    scale,
    ...(window === undefined ? {} : { window }),
    tokens: tokenCount(lowering, [token]),
  });
  const bindings = {
    lengths: LENGTHS,
    q: buffer(q, [token, head, dim]),
    keys: buffer(keys, keys.axes),
    values: buffer(values, values.axes),
    sequence: buffer(sequence, [token]),
    position: buffer(position, [token]),
    y: storageFor(lowering, node).buffer,
  };
  addLaunch(lowering, node, kernel, {
    bindings,
    workgroups: attentionGrid(size(head), sizeOf(lowering, [token])),
  });
}
