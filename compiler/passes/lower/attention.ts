/** Attention over the cache. */

import type { Node, NodeOf } from "../../graph/graph.ts";
import { attention, attentionGrid } from "../../kernels/attention.ts";
import { addLaunch, LENGTHS, type Lowering, sizeOf } from "./context.ts";
import { rowMajorBuffer } from "./elementwise.ts";
import { storageFor } from "./storage.ts";
import { tokenCount } from "./tokens.ts";

/** One launch; queries, keys and values are in the order that the kernel wants. */
export function lowerAttention(
  lowering: Lowering,
  node: NodeOf<"attention">,
): void {
  const [q, keys, values, sequence, position, ...more] = node
    .inputs as [Node, Node, Node, Node, Node, ...Node[]];
  const sinks = node.params.sinks ? more.shift() : undefined;
  const [pages] = more;
  const { scale, window, chunk, shared } = node.params;
  const { token, head, dim, valueDim, kvHead, context } = node.params;
  const buffer = (input: Node, axes: readonly string[]) =>
    rowMajorBuffer(lowering, input, axes);
  const size = (axis: string) => lowering.placed.axes[axis]!.size;
  const shape = {
    heads: size(head),
    kvHeads: kvHead === undefined ? 1 : size(kvHead),
    ...{ dim: size(dim), valueDim: size(valueDim) },
    queries: lowering.options.tuning.attention ?? 1,
  };
  const kernel = attention({
    name: `attention_${size(head)}x${size(dim)}`,
    ...shape,
    shared,
    sinks: sinks !== undefined,
    context: size(context),
    ...pages ? { pages: { size: size(keys.axes[1]!) } } : {},
    scale,
    ...(window === undefined ? {} : { window }),
    ...(chunk === undefined ? {} : { chunk }),
    tokens: tokenCount(lowering, [token]),
  });
  const bindings = {
    lengths: LENGTHS,
    q: buffer(q, [token, head, dim]),
    keys: buffer(keys, keys.axes),
    ...(shared ? {} : { values: buffer(values, values.axes) }),
    sequence: buffer(sequence, [token]),
    position: buffer(position, [token]),
    ...(sinks ? { sinks: buffer(sinks, [head]) } : {}),
    ...(pages ? { pages: buffer(pages, pages.axes) } : {}),
    y: storageFor(lowering, node).buffer,
  };
  addLaunch(lowering, node, kernel, {
    bindings,
    workgroups: attentionGrid(shape, sizeOf(lowering, [token])),
  });
}
