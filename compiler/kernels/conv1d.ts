/** Causal depthwise convolution: an invocation for each channel of each token. */

import type { Expr, Kernel } from "./kernel.ts";
import { bindings, elementwise, wgsl } from "./kernel.ts";

/** A convolution. Its grid is `elementwiseGrid(tokens * channels)`. */
export interface Conv1dOptions {
  readonly name: string;
  readonly tokens: Expr;
  readonly channels: number;
  /** Taps of a channel. */
  readonly width: number;
  /** Slots of a sequence in the ring: the input at position p is in slot p % slots. */
  readonly slots: number;
}

/**
 * y[token, channel] = sum of weight[channel, tap] * ring[sequence, position - (width - 1) + tap, channel], in the order of
 * taps.
 */
export function conv1d(o: Conv1dOptions): Kernel {
  const { channels, slots, width } = o;
  return elementwise({
    name: o.name,
    count: wgsl`${o.tokens} * ${channels}`,
    bindings: bindings({
      ring: "f32 [sequence, slot, channel]",
      weight: "f32 [channel, tap]",
      sequence: "i32 [token]",
      position: "i32 [token]",
    }, { y: "f32 [token, channel]" }),
    body: wgsl`
      let token = i / ${channels};
      let channel = i % ${channels};
      let first = u32(sequence[token]) * ${slots};
      let last = u32(position[token]);
      var sum = 0.0;
      for (var tap = 0u; tap < ${width}; tap++) {
        let end = last + tap;
        if (end >= ${width - 1}) {
          let row = first + (end - ${width - 1}) % ${slots};
          sum = fma(weight[channel * ${width} + tap], ring[row * ${channels} + channel], sum);
        }
      }
      y[i] = sum;`,
  });
}
