/** Element counts in kernels, which multiply indices. */

import { MachineError } from "../errors.ts";
import { MAX_ELEMENTS } from "../limits.ts";
import { u32 } from "./build.ts";
import type { Expr } from "./tree.ts";

/** An element count as u32. Throws MachineError if kernels cannot index that many. */
export function elementCount(count: number): Expr {
  if (count <= MAX_ELEMENTS) return u32(count);
  throw new MachineError(
    `Cannot index ${count} elements: kernels support at most ${MAX_ELEMENTS}. Use more ranks or smaller bounds`,
  );
}
