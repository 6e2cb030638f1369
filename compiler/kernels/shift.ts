/** Rows of the tokens a number of positions earlier in their sequence: one invocation per element. */

import type { Expr, Kernel } from "./kernel.ts";
import { bindings, elementwise, wgsl } from "./kernel.ts";

/** Rows to shift. Its grid is `elementwiseGrid(tokens * width)`. */
export interface ShiftOptions {
  readonly name: string;
  readonly tokens: Expr;
  /** Elements of a row. */
  readonly width: number;
  /** Number of positions earlier; negative: later. */
  readonly by: number;
}

/** y[token] = x[token - by], or 0 if that token is not `by` positions earlier in the same sequence. */
export function shift({ name, tokens, width, by }: ShiftOptions): Kernel {
  return elementwise({
    name,
    count: wgsl`${tokens} * ${width}`,
    bindings: bindings({
      x: "f32 [token, channel]",
      sequence: "i32 [token]",
      position: "i32 [token]",
    }, { y: "f32 [token, channel]" }),
    body: wgsl`
      let token = i / ${width};
      let from = i32(token) - (${by});
      let there = u32(min(max(from, 0i), i32(${tokens}) - 1i));
      let is_there = i32(there) == from && sequence[there] == sequence[token] && position[there] == position[token] - (${by});
      y[i] = select(0.0, x[there * ${width} + i % ${width}], is_there);`,
  });
}
