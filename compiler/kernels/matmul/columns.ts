/** The columns of a lane of a matrix multiplication, and where their weights start. */

import { isHalf } from "../../../spec/dtype.ts";
import { invariant } from "../../../spec/errors.ts";
import { u32 } from "../../../spec/kernel/build.ts";
import type { KernelText } from "../kernel.ts";
import { bindingsOf, wgsl } from "../kernel.ts";
import type { DecodedMatmul } from "./decoder.ts";
import type { MatmulOptions, MatmulWeight, WeightsOptions } from "./options.ts";

/** Right operands, and the left one if it may be in one of their bindings. */
type Operands =
  & WeightsOptions
  & Partial<Pick<MatmulOptions, "left" | "leftRow">>;

/** Consecutive columns of one invocation: those of a vector load, two per word for packed weights. */
export function unitOf(o: Operands): number {
  const unit = widthOf(o) * (o.weights.some(inWords) ? 2 : 1);
  invariant(o.tile.columns % unit === 0, "16-bit weights need an even tile");
  return unit;
}

/** Words per load. */
export function widthOf(o: Operands): number {
  if (o.tile.right !== "vector") return 1;
  const left = o.left && o.leftRow
    ? bindingsOf(o.left(o.leftRow(u32(0)), u32(0)))
    : new Set<string>();
  // All loads from a binding must have one width.
  if (o.weights.some(({ binding }) => left.has(binding))) return 1;
  return [4, 2].find((width) =>
    o.weights.every(({ stored, rowStride }) => {
      const unit = width * (isHalf(stored) ? 2 : 1);
      return isHalf(stored) === isHalf(o.weights[0]!.stored) &&
        rowStride % unit === 0 && o.tile.columns % unit === 0;
    })
  ) ?? 1;
}

/** Whether words contain two adjacent columns. */
function inWords({ stored, inside }: MatmulWeight): boolean {
  return isHalf(stored) && inside !== "k";
}

/**
 * column[c]: the result column. at<w>[c]: offset of weight w of that column at k = 0, in words of a load; scale<w>[c]:
 * offset of its scales. Adjacent lanes have adjacent units, so their loads are coalesced. Reads after the last column
 * are allowed and unused.
 */
export function columnsAndWeights(
  o: DecodedMatmul,
  { lanes, part = wgsl`group.y` }: {
    readonly lanes: number;
    /** Index of these columns, in units of the columns of `lanes` lanes. Default: of the workgroup. */
    readonly part?: KernelText;
  },
): KernelText {
  const { unit, tile: { columns } } = o;
  return wgsl`
    let lane_unit = ${part} * ${columns * lanes / unit} + lane % ${lanes};
    @unroll (u < ${columns / unit}) {
      let unit[u] = lane_unit + u * ${lanes};
      @unroll (n < ${unit}) { let column[u * ${unit} + n] = unit[u] * ${unit} + n; }
    }
    ${o.weights.map((_, i) => weightStarts(o, i))}`;
}

/** Declares at<i>[c], scale<i>[c] if weight i has scales, and row_factor<i>[c] if these have factors. */
function weightStarts(o: DecodedMatmul, i: number): KernelText {
  const { unit, width, tile: { columns } } = o;
  const { stored, factors, inside, rowStride } = o.weights[i]!;
  const { rowWords, rowScales } = o.decoders[i]!;
  const rowFactors = factors !== undefined && wgsl`
    @unroll (c < ${columns}) {
      let row_factor${i}[c] = ${factors}[${ofExpert(o, o.columns)} + column[c]];
    }`;
  if (inside === "k") {
    const along = (base: string, each: number) =>
      wgsl`
      @unroll (c < ${columns}) {
        let ${base}[c] = ${ofExpert(o, o.columns * each)} + column[c] * ${each};
      }`;
    return wgsl`
      ${along(`at${i}`, rowWords)}
      ${rowScales !== undefined && along(`scale${i}`, rowScales)}
      ${rowFactors}`;
  }
  const packed = isHalf(stored);
  invariant(!packed || rowStride % 2 === 0, "packed rows are even");
  const apart = packed || width > 1 ? unit : 1;
  const index = apart > 1 ? "unit[n]" : "column[n]";
  return wgsl`
    @unroll (n < ${columns / apart}) {
      let at${i}[n * ${apart}] = ${
    ofExpert(o, Number(o.k) * rowWords / width)
  } + ${index};
    }
    ${
    rowScales !== undefined && wgsl`
    @unroll (c < ${columns}) {
      let scale${i}[c] = ${ofExpert(o, Number(o.k) * rowScales)} + column[c];
    }`
  }
    ${rowFactors}`;
}

/** Offset of the weights of the tile's expert, given the words per expert. */
function ofExpert({ grouped }: WeightsOptions, words: number): KernelText {
  if (!grouped) return wgsl`0u`;
  invariant(!Number.isNaN(words), "experts' weights have one size");
  return wgsl`expert * ${words}`;
}
