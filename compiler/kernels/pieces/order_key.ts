/** Floats as integers of the same order. */

import {
  type Hole,
  type KernelText,
  wgsl,
} from "../../../spec/kernel/text/text.ts";

/**
 * A u32 with the order of an f32, for all bits; -0 equals 0. The usual key of radix sorts: negative floats have all
 * bits inverted, others the sign bit set.
 */
export function orderKey(value: Hole): KernelText {
  const bits = wgsl`bitcast<u32>(select(${value}, 0.0, ${value} == 0.0))`;
  return wgsl`select(${bits} | 0x80000000, ${bits} ^ 0xffffffff, (${bits} >> 31u) > 0)`;
}
