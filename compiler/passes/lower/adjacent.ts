/** Loads of adjacent elements of stored values. */

import { isHalf } from "../../../spec/dtype.ts";
import {
  add,
  binary,
  let_,
  loads,
  local,
  u32,
  unpackHalves,
} from "../../../spec/kernel/build.ts";
import { ADJACENT, type LoadAdjacent } from "../../kernels/pieces/adjacent.ts";
import type { Storage } from "./context.ts";
import type { KernelScope } from "./scope.ts";

/**
 * Loads adjacent elements of a value whose rows are contiguous and a multiple of `length` apart. Undefined: vectors do
 * not fit into rows, or elements are no floats.
 */
export function adjacentOf(
  scope: KernelScope,
  { buffer, dtype }: Pick<Storage, "buffer" | "dtype">,
  length: number,
): LoadAdjacent | undefined {
  if (length % ADJACENT !== 0) return undefined;
  if (dtype !== "f32" && !isHalf(dtype)) return undefined;
  return (base, i, names) => {
    const index = binary("shr", add(base, i), u32(Math.log2(ADJACENT)));
    const binding = scope.read(buffer);
    if (dtype === "f32") return [loads(names, { binding, index })];
    const words = names.filter((_, n) => n % 2 === 0)
      .map((name) => `word_of_${name}`);
    return [
      loads(words, { binding, index, type: "u32" }),
      ...words.flatMap((word, n) =>
        unpackHalves(dtype, local(word, "u32"))
          .map((value, half) => let_(names[2 * n + half]!, value))
      ),
    ];
  };
}
