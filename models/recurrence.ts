/** Shared parts of layers with a fixed-size state per sequence: a short convolution, and the decay of a head. */

import { conv1d, exp, merge, mul, neg, type Tensor } from "../compiler/mod.ts";
import type { DecoderScope, Layer } from "./decoder.ts";

/** Axes of a convolution besides its `channels`: taps, in files after an axis of one; and `slot`, of its state. */
export type ConvolutionAxis = "tap" | "slot" | "one" | "filed";

/** Returns the sizes for a number of taps. */
export function convolutionAxes(
  taps: number,
): { readonly [axis in ConvolutionAxis]: number } {
  return { tap: taps, slot: taps - 1, one: 1, filed: taps };
}

/**
 * Causal convolution of every channel with the parameter `weight`, without its bias. A state of the layer's block,
 * `inputs` by default, holds the last inputs.
 */
export function convolve(
  m: DecoderScope<ConvolutionAxis | "channels">,
  x: Tensor<"token channels", "f32">,
  { layer, block, weight, state: name = "inputs" }: {
    readonly layer: Layer;
    readonly block: string;
    readonly weight: string;
    readonly state?: string;
  },
): Tensor<"token channels", "f32"> {
  const filed = m.param(weight, "channels one filed");
  const taps = merge(filed, "one filed", "tap");
  const { y, state } = conv1d(x, taps, "tap", {
    state: m.state(name, "sequence slot channels"),
    sequence: layer.sequence,
    position: layer.position,
  });
  layer.keep(`${layer.name}.${block}.${name}`, state);
  return y;
}

/** exp(-exp(A_log) · step) of each head. */
export function decayOf(
  m: DecoderScope,
  step: Tensor<"token head", "f32">,
): Tensor<"token head", "f32"> {
  return exp(mul(step, neg(exp(m.param("A_log", "head")))));
}
