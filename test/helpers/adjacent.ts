/** Loads of adjacent elements of the left operand, for tests of kernels. */

import {
  add,
  binary,
  let_,
  loads,
  local,
  mul,
  u32,
} from "../../spec/kernel/build.ts";
import type { LoadAdjacent } from "../../compiler/kernels/pieces/adjacent.ts";

/** Adjacent elements of a binding. */
export function adjacentIn(binding: string): LoadAdjacent {
  return (base, i, names) => [
    loads(names, { binding, index: binary("shr", add(base, i), u32(2)) }),
  ];
}

/** Adjacent elements of binding `x`. */
export const adjacentInX = adjacentIn("x");

/** Adjacent elements of binding `x`, times the scale of their norm. */
export const adjacentInNorm: LoadAdjacent = (base, i, names) => {
  const xs = names.map((name) => `x_of_${name}`);
  return [
    ...adjacentInX(base, i, xs),
    ...names.map((name, n) =>
      let_(name, mul(local(xs[n]!, "f32"), local("norm_scale", "f32")))
    ),
  ];
};
