/** Attention over the cache. */

import { invariant, ModelError } from "../../../spec/errors.ts";
import type { Node, NodeOf } from "../../graph/graph.ts";
import { attention, attentionGrid } from "../../kernels/attention.ts";
import { lengthAt } from "../../kernels/kernel.ts";
import { addLaunch, LENGTHS, type Lowering, sizeOf } from "./context.ts";
import { storageFor } from "./storage.ts";

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
  const buffer = (input: Node, axes: readonly string[]) => {
    const storage = lowering.storages.get(input);
    invariant(storage, "an operand of attention is not stored");
    if (storage.axes.join() !== axes.join()) {
      throw new ModelError(
        `Cannot lay out attention: '${
          input.axes.join(" ")
        }' must lie in the order '${axes.join(" ")}'. Transpose it`,
        node.span,
      );
    }
    return storage.buffer;
  };
  const size = (axis: string) => lowering.placed.axes[axis]!.size;
  const kernel = attention({
    name: `attention_${size(head)}x${size(dim)}`,
    heads: size(head),
    kvHeads: size(kvHead),
    dim: size(dim),
    context: size(context),
    scale,
    ...(window === undefined ? {} : { window }),
    tokens: lengthAt(lowering.placed.counts.indexOf(token)),
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
