/** The order of every sum: blocks of 32 consecutive indices, block sums added in order. See spec/numerics.md. */

import { invariant } from "../../spec/errors.ts";
import {
  add,
  f32,
  for_,
  if_,
  local,
  min,
  set,
  u32,
  var_,
} from "../../spec/kernel/build.ts";
import type { Expr, Stmt } from "../../spec/kernel/tree.ts";
import { lengthOf } from "./kernel.ts";

/** Indices in a block of a sum. */
export const SUM_BLOCK = 32;

/** One turn of a sum: what to prepare, and the new value of each block sum. */
export interface SumStep {
  readonly lets?: readonly Stmt[];
  /** Whether anything is added at this index. Default: always. */
  readonly when?: Expr;
  readonly values: readonly Expr[];
}

/** Several sums over one index. */
export interface BlockedSumOptions {
  /** How many indices. */
  readonly length: number | Expr;
  /** Names of the sums: f32 variables that hold them afterwards. */
  readonly totals: readonly string[];
  /** Name of the index, and prefix of the names that the loop needs. Default `k`. */
  readonly index?: string;
  /** What comes before each block, given its first index. */
  before?(start: Expr): readonly Stmt[];
  /** New block sums at index `k`, given the current ones: usually `fma(a, b, blocks[i])`. */
  step(k: Expr, blocks: readonly Expr[]): SumStep;
}

/** Statements that declare `totals` and sum into them in the contract's order. */
export function blockedSum(o: BlockedSumOptions): Stmt[] {
  const name = o.index ?? "k";
  const length = lengthOf(o.length);
  const blocks = o.totals.map((total) => `${total}_block`);
  const totals = o.totals.map((total) => var_(total, f32(0)));
  if (o.length === 0) return totals;
  const short = typeof o.length === "number" && o.length <= SUM_BLOCK;
  const start = short ? u32(0) : local(`${name}_block`, "u32");
  const whole = typeof o.length === "number" && o.length % SUM_BLOCK === 0;
  const next = add(start, u32(SUM_BLOCK));
  const end = short ? length : whole ? next : min(next, length);
  const body = [
    ...o.before?.(start) ?? [],
    ...blocks.map((block) => var_(block, f32(0))),
    ...blockLoop({ ...o, index: name }, start, end, blocks),
    // Also for a single block: 0 + block is the contract's, and differs from block where that is -0.
    ...o.totals.map((total, i) =>
      set(total, add(local(total, "f32"), local(blocks[i]!, "f32")))
    ),
  ];
  return short ? [...totals, ...body] : [
    ...totals,
    for_(`${name}_block`, u32(0), length, body, u32(SUM_BLOCK)),
  ];
}

/** The loop over one block, from `start` below `end`; the block sums are variables declared before it. */
export function blockLoop(
  o: Pick<BlockedSumOptions, "index" | "step">,
  start: Expr,
  end: Expr,
  blocks: readonly string[],
): Stmt[] {
  const name = o.index ?? "k";
  const step = o.step(
    local(name, "u32"),
    blocks.map((block) => local(block, "f32")),
  );
  invariant(step.values.length === blocks.length, "one value for each sum");
  const sets = step.values.map((value, i) => set(blocks[i]!, value));
  return [
    for_(name, start, end, [
      ...step.lets ?? [],
      ...step.when ? [if_(step.when, sets)] : sets,
    ]),
  ];
}

/** How many segments a contraction over `k` elements has: see spec/numerics.md. */
export function segmentsOf(k: number): number {
  let segments = 8;
  while (segments > 1 && (k % segments !== 0 || k / segments < 8)) {
    segments /= 2;
  }
  return segments;
}
