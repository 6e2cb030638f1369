/**
 * The sum of the contract as text: equal segments, each summed in blocks of 32 consecutive indices; block sums are
 * added in order, segments as a balanced binary tree. See spec/numerics.md.
 */

import { invariant } from "../../../spec/errors.ts";
import {
  type Hole,
  type KernelText,
  type Statements,
  wgsl,
} from "../../../spec/kernel/text/text.ts";
import { add as plus } from "../../../spec/kernel/build.ts";
import { EXACT } from "../../../spec/numerics.ts";
import { type Expr, expr, local } from "../kernel.ts";
import {
  declareEach,
  type Register,
  registers,
  setEach,
} from "../../../spec/kernel/registers.ts";
import { LOWEST } from "./numbers.ts";
import { sumTree } from "./sum_tree.ts";

/** Indices in a block of a sum. */
export const SUM_BLOCK = EXACT.block;

/** Sums over one index. */
export interface BlockedSumOptions {
  /** Number of indices: a number or a u32. */
  readonly length: Hole;
  /** Name of the index, and prefix of generated names. Default: `k`. */
  readonly over?: string;
  /**
   * Number of equal segments, whose sums are added as a tree: a power of two that divides `length`, which is then a
   * constant. Default: 1.
   */
  readonly segments?: number | undefined;
  /**
   * Terms per iteration, a power of two that divides the length of every block: `add` adds the terms from `terms` * `k`
   * on. Default: 1.
   */
  readonly terms?: number;
  /**
   * Indices per loop within a block, a run, whose iterations are counted by `counter`. Default: blocks have no runs.
   */
  readonly run?: {
    readonly length: number;
    readonly counter: string;
  } | undefined;
  /** Code before each block, and before each run, given its first index. */
  readonly before?:
    | ((start: KernelText, of: "block" | "run") => Statements)
    | undefined;
}

/**
 * Declares an f32 variable, or registers, and sums into them. For each index, `add` adds to the sum of the current
 * block, named `dot_block` for the total `dot`.
 */
export function blockedSum(
  total: string | readonly Register[],
  { segments = 1, ...o }: BlockedSumOptions,
  add: Statements,
): KernelText {
  const { length, over: k = "k" } = o;
  const totals = typeof total === "string" ? registers(total) : total;
  const declared = declareEach(totals);
  if (length === 0) return wgsl`${declared}`;
  if (segments === 1) return wgsl`${declared} ${oneSegment(totals, o, add)}`;
  const tree = sumTree(
    totals.map(({ base, indices }) => ({ base: `${base}_part`, indices })),
    segments,
  );
  const segment = {
    ...o,
    length: segmentLength(length, segments),
    first: wgsl`${k}_first`,
    sum: "_part",
  };
  const results = setEach(totals, "", (of) => of("_part"));
  return wgsl`
    ${declared}
    ${tree.declare}
    for (var ${k}_segment = 0u; ${k}_segment < ${segments}; ${k}_segment++) {
      let ${k}_first = ${k}_segment * ${segment.length};
      ${declareEach(totals, "_part")}
      ${oneSegment(totals, segment, add)}
      ${tree.add(local(`${k}_segment`, "u32"), results)}
    }`;
}

/**
 * `total + block`, where `block` may be a sum of two products. Mesa computes `total + (a * b + c * d)` as
 * `a * b + (c * d + total)`. A selection between the sums prevents it and never changes a value.
 */
function plusBlock(total: Expr, block: Expr): Expr {
  return expr`${total} + select(${block} + ${block}, ${block}, abs(${block}) <= ${-LOWEST})`;
}

/** Indices per segment. */
function segmentLength(length: Hole, segments: number): number {
  invariant(
    typeof length === "number" && length % segments === 0,
    "segments are equally long",
  );
  invariant((segments & (segments - 1)) === 0, "segments are a power of two");
  return length / segments;
}

/** Adds the blocks of `length` indices from `first` to totals of 0, or to `sum` of them. */
function oneSegment(
  totals: readonly Register[],
  { length, over: k = "k", terms = 1, first, before, run, sum = "" }:
    & BlockedSumOptions
    & { readonly first?: KernelText; readonly sum?: string },
  add: Statements,
): KernelText {
  const known = typeof length === "number";
  const from = first ?? wgsl`0u`;
  const last = first ? wgsl`${first} + ${length}` : length;
  const inGroups = (start: KernelText, count: number) => {
    invariant(count % terms === 0, "blocks are whole groups of terms");
    if (run) {
      const { length, counter } = run;
      const body = (from: KernelText) =>
        wgsl`
        ${before?.(from, "run")}
        let ${k}_groups = (${from}) >> ${Math.log2(terms)}u;
        for (var ${counter} = 0u; ${counter} < ${
          length / terms
        }; ${counter}++) {
          let ${k} = ${k}_groups + ${counter};
          ${add}
        }`;
      if (count === length) return body(start);
      invariant(count % length === 0, "blocks are whole runs");
      return wgsl`
        for (var ${k}_run = ${start}; ${k}_run < ${start} + ${count}; ${k}_run += ${length}) {
          ${body(wgsl`${k}_run`)}
        }`;
    }
    return wgsl`
      let ${k}_groups = (${start}) >> ${Math.log2(terms)}u;
      for (var ${k} = ${k}_groups; ${k} < ${k}_groups + ${
      count / terms
    }; ${k}++) {
        ${add}
      }`;
  };
  const each = (start: KernelText, end: Hole) =>
    wgsl`for (var ${k} = ${start}; ${k} < ${end}; ${k}++) { ${add} }`;
  const block = (start: KernelText, end: Hole, count: number) =>
    wgsl`
      ${before?.(start, "block")}
      ${declareEach(totals, "_block")}
      ${terms > 1 ? inGroups(start, count) : each(start, end)}
      // Also for a single block: the contract's 0 + block differs from block if that is -0.
      ${
      setEach(totals, sum, (of) =>
        known && length % SUM_BLOCK === 2
          ? plusBlock(of(sum), of("_block"))
          : plus(of(sum), of("_block")))
    }`;
  invariant(known || terms === 1, "terms of an iteration are counted");
  if (known && length <= SUM_BLOCK) return block(from, last, length);
  const next = wgsl`${k}_block + ${SUM_BLOCK}`;
  const rest = terms > 1 ? Number(length) % SUM_BLOCK : 0;
  const end = known && length % SUM_BLOCK === 0
    ? next
    : wgsl`min(${next}, ${last})`;
  const blocksEnd = rest > 0
    ? wgsl`${from} + ${Number(length) - rest}`
    : wgsl`${last}`;
  return wgsl`
    for (var ${k}_block = ${from}; ${k}_block < ${blocksEnd}; ${k}_block += ${SUM_BLOCK}) {
      ${block(wgsl`${k}_block`, end, SUM_BLOCK)}
    }
    ${rest > 0 && block(blocksEnd, last, rest)}`;
}
