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
import { EXACT } from "../../spec/numerics.ts";
import { lengthOf } from "./kernel.ts";

/** Indices in a block of a sum. */
export const SUM_BLOCK = EXACT.block;

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
  const { segments = 1, totals } = o;
  if (o.length === 0) return totals.map((total) => var_(total, f32(0)));
  return segments === 1
    ? oneSegment(o, totals)
    : pairsOfSegments(o, segmentLength(o.length, segments));
}

/** Several segments, two in a turn of the loop: half of the sums then need not wait for others. */
function pairsOfSegments(o: BlockedSumOptions, length: number): Stmt[] {
  const { segments = 1, totals, index: name = "k" } = o;
  const [pair, first, second] = ["pair", "first", "second"].map((part) =>
    `${name}_${part}`
  ) as [string, string, string];
  const [left, right] = ["left", "right"].map((side) =>
    totals.map((total) => `${total}_${side}`)
  ) as [string[], string[]];
  const at = (start: string, sums: readonly string[]) =>
    oneSegment({ ...o, length }, sums, local(start, "u32"));
  const tree = sumTree({ count: segments / 2, totals });
  return [
    ...tree.declare,
    for_(pair, u32(0), u32(segments / 2), [
      let_(first, mul(local(pair, "u32"), u32(2 * length))),
      ...at(first, left),
      let_(second, add(local(first, "u32"), u32(length))),
      ...at(second, right),
      ...tree.add(
        local(pair, "u32"),
        totals.map((_, i) =>
          add(local(left[i]!, "f32"), local(right[i]!, "f32"))
        ),
      ),
    ]),
    ...tree.finish,
  ];
}

/** Indices of one of several segments. */
export function segmentLength(length: number | Expr, segments: number): number {
  invariant(
    typeof length === "number" && length % segments === 0,
    "segments are equally long",
  );
  return length / segments;
}

/** Statements that declare `totals` and sum into them the blocks from index `first` on; without it, from 0. */
function oneSegment(
  o: BlockedSumOptions,
  totals: readonly string[],
  first?: Expr,
): Stmt[] {
  const name = o.index ?? "k";
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
    ...totals.map((total, i) =>
      set(total, add(local(total, "f32"), local(blocks[i]!, "f32")))
    ),
  ];
  return [
    ...totals.map((total) => var_(total, f32(0))),
    ...short ? body : [
      for_(`${name}_block`, first ?? u32(0), last, body, u32(SUM_BLOCK)),
    ],
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

/** Items that are added as a balanced tree, one after another. */
export interface SumTree {
  /** Declares the totals and what else is kept. */
  readonly declare: readonly Stmt[];
  /** Takes item `index` of each total. */
  add(index: Expr, items: readonly Expr[]): readonly Stmt[];
  /** After the last item: the totals are complete. */
  readonly finish: readonly Stmt[];
}

/**
 * The balanced tree over `count` items (`treeSplit`) as a binary counter: of the items so far, the sum of 2^j of them waits
 * for the next 2^j where bit j of their number is set. The sum of the most waits in the total itself.
 */
export function sumTree(
  o: { readonly count: number; readonly totals: readonly string[] },
): SumTree {
  const { count, totals } = o;
  const levels = Math.floor(Math.log2(count));
  const waiting = (level: number) =>
    totals.map((total) => level === levels ? total : `${total}_${level}`);
  const all = Array.from({ length: levels + 1 }, (_, level) => level);
  const carry = (
    index: Expr,
    level: number,
    values: readonly Expr[],
  ): Stmt[] => {
    const names = waiting(level);
    const keep = names.map((name, i) => set(name, values[i]!));
    const sums = names.map((name, i) => add(local(name, "f32"), values[i]!));
    const bit = binary("and", index, u32(2 ** level));
    // The last item completes the tree of a power of two.
    if (level === levels) return keep;
    return [if_(eq(bit, u32(0)), keep, carry(index, level + 1, sums))];
  };
  const rest = all.filter((level) => (count >> level) & 1);
  return {
    declare: all.flatMap((level) =>
      waiting(level).map((name) => var_(name, f32(0)))
    ),
    add: (index, items) => carry(index, 0, items),
    finish: rest.length === 1 ? [] : totals.map((total, i) =>
      set(
        total,
        rest.map((level) => local(waiting(level)[i]!, "f32"))
          .reduce((right, left) => add(left, right)),
      )
    ),
  };
}
