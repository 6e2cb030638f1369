/**
 * The order of every sum (spec/numerics.md): equal segments, summed in blocks of 32 consecutive indices, block sums added in
 * order; segments are added as a balanced binary tree.
 */

import { invariant } from "../../spec/errors.ts";
import {
  add,
  binary,
  eq,
  f32,
  for_,
  if_,
  let_,
  local,
  min,
  mul,
  set,
  u32,
  var_,
} from "../../spec/kernel/build.ts";
import type { Expr, Stmt } from "../../spec/kernel/tree.ts";
import { lengthOf } from "./kernel.ts";
import { segmentLength, SUM_BLOCK } from "./pieces/blocked_sum.ts";

export { segmentLength, SUM_BLOCK };

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
  /** Equal segments, whose sums are added as a tree: a power of two that divides `length`, which is then a number. Default: 1. */
  readonly segments?: number;
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
  const { segments = 1, totals, index: name = "k" } = o;
  const declared = totals.map((total) => var_(total, f32(0)));
  if (o.length === 0) return declared;
  if (segments === 1) return [...declared, ...oneSegment(o)];
  const length = segmentLength(o.length, segments);
  const [segment, first] = [`${name}_segment`, `${name}_first`];
  const tree = sumTree({ count: segments, totals });
  return [
    ...declared,
    ...tree.declare,
    for_(segment, u32(0), u32(segments), [
      let_(first, mul(local(segment, "u32"), u32(length))),
      ...length > SUM_BLOCK ? totals.map((total) => set(total, f32(0))) : [],
      ...oneSegment({ ...o, length }, local(first, "u32")),
      ...tree.add(local(segment, "u32")),
    ]),
    ...tree.finish,
  ];
}

/** Statements that add to totals of 0 the blocks from index `first` on; without it, from 0. A single block replaces them. */
function oneSegment(o: BlockedSumOptions, first?: Expr): Stmt[] {
  const { totals, index: name = "k" } = o;
  const length = lengthOf(o.length);
  const last = first === undefined ? length : add(first, length);
  const blocks = totals.map((total) => `${total}_block`);
  const short = typeof o.length === "number" && o.length <= SUM_BLOCK;
  const start = short ? first ?? u32(0) : local(`${name}_block`, "u32");
  const whole = typeof o.length === "number" && o.length % SUM_BLOCK === 0;
  const next = add(start, u32(SUM_BLOCK));
  const end = short ? last : whole ? next : min(next, last);
  const body = [
    ...o.before?.(start) ?? [],
    ...blocks.map((block) => var_(block, f32(0))),
    ...blockLoop({ ...o, index: name }, start, end, blocks),
    // Also for a single block: 0 + block is the contract's, and differs from block where that is -0.
    ...totals.map((total, i) => {
      const sum = short ? f32(0) : local(total, "f32");
      return set(total, add(sum, local(blocks[i]!, "f32")));
    }),
  ];
  return short ? body : [
    for_(`${name}_block`, first ?? u32(0), last, body, u32(SUM_BLOCK)),
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

/** Items that are added as a balanced tree, one after another: each is in the totals when it is taken. */
export interface SumTree {
  /** Declares what waits beside the totals. */
  readonly declare: readonly Stmt[];
  /** Takes item `index`, which is in the totals; the last item completes them where there is a power of two. */
  add(index: Expr): readonly Stmt[];
  /** After the last item: the totals are complete. */
  readonly finish: readonly Stmt[];
}

/**
 * The balanced tree over `count` items (`treeSplit`) as a binary counter: of the items so far, the sum of 2^j of them waits
 * for the next 2^j where bit j of their number is set.
 */
export function sumTree(
  o: { readonly count: number; readonly totals: readonly string[] },
): SumTree {
  const { count, totals } = o;
  const levels = Math.ceil(Math.log2(count));
  const waiting = (total: string, level: number) => `${total}_${level}`;
  const all = Array.from({ length: levels }, (_, level) => level);
  const carry = (index: Expr, level: number): Stmt[] => {
    if (level === levels) return [];
    const bit = binary("and", index, u32(2 ** level));
    const keep = totals.map((total) =>
      set(waiting(total, level), local(total, "f32"))
    );
    const added = totals.map((total) => set(total, withWaiting(total, level)));
    return [
      if_(eq(bit, u32(0)), keep, [...added, ...carry(index, level + 1)]),
    ];
  };
  const withWaiting = (total: string, level: number) =>
    add(local(waiting(total, level), "f32"), local(total, "f32"));
  const rest = all.filter((level) => (count >> level) & 1);
  return {
    declare: all.flatMap((level) =>
      totals.map((total) => var_(waiting(total, level), f32(0)))
    ),
    add: (index) => carry(index, 0),
    // The last item kept is still in the totals.
    finish: rest.slice(1).flatMap((level) =>
      totals.map((total) => set(total, withWaiting(total, level)))
    ),
  };
}
