/** Text for each of some registers. */

import {
  type KernelText,
  type Statements,
  wgsl,
} from "../../../spec/kernel/text.ts";

/** `body` for all values of indices such as `r < 4, c < 2`, the last one fastest; without indices, once. */
export function unrolled(
  indices: KernelText | undefined,
  body: Statements,
): KernelText {
  return indices ? wgsl`@unroll (${indices}) { ${body} }` : wgsl`${body}`;
}
