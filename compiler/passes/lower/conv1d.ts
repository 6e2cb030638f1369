/** Causal depthwise convolution over the ring of last inputs. */

import type { Node, NodeOf } from "../../graph/graph.ts";
import { conv1d } from "../../kernels/conv1d.ts";
import { elementwiseGrid } from "../../../spec/kernel/elementwise.ts";
import { addLaunch, type Lowering, sizeOf } from "./context.ts";
import { rowMajorBuffer } from "./elementwise.ts";
import { storageFor } from "./storage.ts";
import { tokenCount } from "./tokens.ts";

/** One launch. */
export function lowerConv1d(lowering: Lowering, node: NodeOf<"conv1d">): void {
  const [ring, weight, sequence, position] = node
    .inputs as [Node, Node, Node, Node];
  const size = (axis: string | undefined) => lowering.placed.axes[axis!]!.size;
  const [, slot, channel] = ring.axes;
  const { over } = node.params;
  const buffer = (input: Node) => rowMajorBuffer(lowering, input, input.axes);
  const kernel = conv1d({
    name: `conv1d_${size(channel)}x${size(over)}`,
    channels: size(channel),
    width: size(over),
    slots: size(slot),
    tokens: tokenCount(lowering, sequence.axes),
  });
  addLaunch(lowering, node, kernel, {
    bindings: {
      ring: buffer(ring),
      weight: buffer(weight),
      sequence: buffer(sequence),
      position: buffer(position),
      y: storageFor(lowering, node).buffer,
    },
    workgroups: elementwiseGrid(sizeOf(lowering, node.axes)),
  });
}
