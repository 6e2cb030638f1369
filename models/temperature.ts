/** The temperature of attention that grows with the position (Llama 4). */

import { add, cast, div, log, type Tensor } from "../compiler/mod.ts";
import { times } from "./decoder.ts";

/** The growth of queries: by `scale` times a logarithm, in steps of `floor` positions. */
export interface Temperature {
  readonly floor: number;
  readonly scale: number;
}

/** Returns the factor of the queries of each position: 1 + scale · log(1 + floor(position / floor)). */
export function temperature(
  position: Tensor<"token", "i32">,
  { floor, scale }: Temperature,
): Tensor<"token", "f32"> {
  const periods = cast(div(position, floor), "f32");
  return add(times(log(add(periods, 1)), scale), 1);
}
