/** The scales of weights in the loops of a matrix multiplication. */

import { register } from "../../../spec/kernel/registers.ts";
import { EXACT } from "../../../spec/numerics.ts";
import { sumBlocks } from "../../tuning/tile.ts";
import type { Expr, KernelText } from "../kernel.ts";
import { expr, local, wgsl } from "../kernel.ts";
import type { DecodedMatmul, Parts, WeightScales } from "./decoder.ts";
import type { WeightsOptions } from "./options.ts";
import { scaled } from "../pieces/decode.ts";
import { range } from "../../../spec/range.ts";

/**
 * Scales of a column in one block of a sum, which are loaded once per block: 1, or 2 if groups start within blocks. 0:
 * more.
 */
export function scalesInBlock(
  o: WeightsOptions,
  { elements: perScale }: Pick<WeightScales, "elements">,
): 0 | 1 | 2 {
  if (perScale === Number(o.k)) return 1;
  const { length = EXACT.block, ofSegment = 1 } = sumBlocks(o) ?? {};
  const segment = Number(o.k) / (o.segments ?? 1);
  if (perScale < length) {
    return 2 * perScale === length && segment % perScale === 0 ? 2 : 0;
  }
  const starts = ofSegment === 1 ? [segment] : [segment, length];
  // Blocks start at multiples of their length if these divide segments, or if there are none.
  const aligned = (o.segments ?? 1) === 1 || segment % length === 0
    ? perScale % length === 0
    : starts.every((start) => start % perScale === 0 || perScale % start === 0);
  return aligned ? 1 : 2;
}

/**
 * Declares factor<g>_<i>[c] and offset<g>_<i>[c] of each scale of the block of a sum that starts at index `start`, and
 * boundary_<i>, the first index with the second scale; nothing if they are loaded in every iteration.
 */
export function scalesOfBlock(
  o: DecodedMatmul,
  i: number,
  { columns = range(o.tile.columns), start }: {
    readonly columns?: readonly number[];
    readonly start: KernelText;
  },
): Parts {
  const { scales } = o.decoders[i]!;
  const count = scales ? scalesInBlock(o, scales) : 0;
  return count === 0 ? [] : scales!.ofBlock(count, { columns, start });
}

/** Declares factor<g>_<i>[column] and offset<g>_<i>[column] for each scale of iteration `k`. */
export function scalesOfIteration(
  o: DecodedMatmul,
  { i, column }: { readonly i: number; readonly column: number },
): Parts {
  const { scales } = o.decoders[i]!;
  return scales && scalesInBlock(o, scales) === 0
    ? scales.ofIteration(column)
    : [];
}

/** Declares group_<i>, the number of the first group of a block of a sum, and boundary_<i> if there are two. */
export function groupsOfBlock(
  o: WeightsOptions,
  i: number,
  { elements, count, start }: {
    /** Elements of a group. */
    readonly elements: number;
    readonly count: 1 | 2;
    /** Index of the first element of the block. */
    readonly start: KernelText;
  },
): {
  readonly declared: readonly KernelText[];
  /** Numbers of the groups. */
  readonly groups: readonly Expr[];
  /** Number of the last group of a column. */
  readonly last: number;
} {
  const last = Number(o.k) / elements - 1;
  const first = local(`group_${i}`, "u32");
  return {
    declared: [
      wgsl`let group_${i} = (${start}) >> ${Math.log2(elements)}u;`,
      ...count === 1
        ? []
        : [wgsl`let boundary_${i} = (group_${i} + 1) * ${elements};`],
    ],
    groups: count === 1 ? [first] : [first, expr`min(${first} + 1, ${last})`],
    last,
  };
}

/** The factor or offset of an element. */
export interface ElementScale {
  readonly i: number;
  readonly column: number;
  /** Its index along k, or that of the first term of its iteration. */
  readonly k: Expr;
  /** Its term in the iteration. Default: 0. */
  readonly n?: number;
}

/** An element times its scale, plus its offset if there is one. */
export function scaledElement(
  o: DecodedMatmul,
  element: Expr,
  at: ElementScale,
): Expr {
  const { scales } = o.decoders[at.i]!;
  if (!scales) return element;
  return scaled(element, {
    factor: scaleOf(o, "factor", at),
    offset: scales.hasOffsets ? scaleOf(o, "offset", at) : undefined,
  });
}

/** The factor or offset of an element of a weight with scales. */
export function scaleOf(
  o: DecodedMatmul,
  part: "factor" | "offset",
  { i, column, k, n = 0 }: ElementScale,
): Expr {
  const scales = o.decoders[i]!.scales!;
  const of = (group: number) => register(`${part}${group}_${i}`, [column]);
  const count = scalesInBlock(o, scales);
  if (count === 0) return of(Math.floor(n / scales.elements));
  return count === 1
    ? of(0)
    : expr`select(${of(0)}, ${of(1)}, ${k} >= ${
      local(`boundary_${i}`, "u32")
    })`;
}
