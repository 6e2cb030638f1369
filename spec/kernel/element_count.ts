/** Numbers of elements in kernels: what indices are multiplied by. */

import { MachineError } from "../errors.ts";
import { MAX_ELEMENTS } from "../limits.ts";
import { u32 } from "./build.ts";
import type { Expr } from "./tree.ts";

/** A number of elements as u32. Throws MachineError where kernels cannot index so many. */
export function elementCount(count: number): Expr {
  if (count <= MAX_ELEMENTS) return u32(count);
  throw new MachineError(
    `Cannot index ${count} elements: kernels do with at most ${MAX_ELEMENTS}. Use more ranks or smaller bounds`,
  );
}
