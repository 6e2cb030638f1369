/** Rounds of innermost loops that are unrolled here. */

import type { Stmt } from "../../spec/kernel/tree.ts";
import { walkExpressions, walkStatements } from "../../spec/kernel/walk.ts";
import type { Loop } from "./accesses.ts";
import type { PointerGroup } from "./pointers.ts";

/** Maximum expressions of a loop body for unrolling four times, and twice. */
const UNROLL_FOUR = 220;
const UNROLL_TWO = 700;

/** Vector registers of the smallest supported processor. */
const REGISTERS = 16;

/** Maximum elements by which a pointer advances in one iteration of an unrolled loop. */
const MAX_LEAP = 2 ** 26;

/**
 * Iterations of a loop whose loads fit into registers together with the sums of the loop; engines load all of an
 * unrolled round before they compute. Infinity: not even one iteration fits, so sums are in memory, and longer rounds
 * load them less often.
 */
function iterationsInRegisters(
  body: readonly Stmt[],
  groups: readonly PointerGroup[],
): number {
  const sums = new Set<string>();
  walkStatements(body, (s) => {
    if (s.op === "set" && s.value.type === "f32") sums.add(s.name);
  });
  const loads = groups.reduce((n, group) => n + group.loads.size, 0);
  const room = REGISTERS - sums.size;
  if (loads > room) return Infinity;
  return [4, 2].find((unrolled) => unrolled * loads <= room) ?? 1;
}

/** Iterations in an unrolled round of a loop. */
export function iterationsOf(
  s: Loop,
  step: number,
  groups: readonly PointerGroup[],
): number {
  // Not unrolled if strides are so large that offsets of an unrolled round would not fit 32 bits.
  const far = groups.some(({ stride }) =>
    step * (typeof stride === "number" ? Math.max(1, stride) : 1) >= MAX_LEAP
  );
  if (far) return 1;
  let size = 0;
  walkExpressions(s.body, () => size++);
  const bySize = size > UNROLL_TWO ? 1 : size > UNROLL_FOUR ? 2 : 4;
  return Math.min(bySize, iterationsInRegisters(s.body, groups));
}
