/** The columns of a lane of a matrix multiplication, and where their weights start. */

import { isHalf } from "../../../spec/dtype.ts";
import { type Packing, packingOf } from "../../../spec/weights/packed.ts";
import { invariant } from "../../../spec/errors.ts";
import { u32 } from "../../../spec/kernel/build.ts";
import type { KernelText } from "../kernel.ts";
import { bindingsOf, wgsl } from "../kernel.ts";
import type { MatmulOptions, MatmulWeight } from "./options.ts";
import { type Bytes, bytesOf } from "../pieces/bytes.ts";
import { perWord } from "../pieces/decode.ts";

/** Consecutive columns of one invocation: those of a vector load, two per word for packed weights. */
export function unitOf(o: MatmulOptions): number {
  const unit = widthOf(o) * (o.weights.some(inWords) ? 2 : 1);
  invariant(o.tile.columns % unit === 0, "16-bit weights need an even tile");
  return unit;
}

/** Words per load. */
export function widthOf(o: MatmulOptions): number {
  if (o.tile.right !== "vector") return 1;
  const left = bindingsOf(o.left(o.leftRow(u32(0)), u32(0)));
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
 * Terms of an iteration of a sum: the number of elements per word along k, if it is innermost, or if a workgroup loads
 * blocks together.
 */
export function termCount(
  { weights, tile }: Pick<MatmulOptions, "weights" | "tile">,
): number {
  const isBlocks = tile.right === "workgroup" &&
    weights.every(({ stored }) => packingOf(stored)?.block);
  return Math.max(
    ...weights.map(({ inside, stored }) =>
      inside === "k" || isBlocks ? perWord(stored) : 1
    ),
  );
}

/**
 * The elements of weight i as bytes, if a device whose vectors load along k looks them up in a table of 16, four at a
 * time. `step` is multiplied with the scale, not with each element: the same bits, because it is 1 or a power of two, and
 * so are scales, or they are not tiny.
 */
export function byteTableOf(o: MatmulOptions, i: number): Bytes | undefined {
  const { stored, inside } = o.weights[i]!;
  const packing = packingOf(stored);
  if (o.tile.right !== "workgroup" || inside !== "k") return undefined;
  if (packing?.element === "iq4") return bytesOf("iq4", "signed");
  return packing?.element === "fp4" ? bytesOf("fp4", "signed") : undefined;
}

/**
 * column[c]: the result column. at<w>[c]: offset of weight w of that column at k = 0, in words of a load; scale<w>[c]:
 * offset of its scales. Adjacent lanes have adjacent units, so their loads are coalesced. Reads after the last column
 * are allowed and unused.
 */
export function columnsAndWeights(
  o: MatmulOptions,
  { lanes, part = wgsl`group.y` }: {
    readonly lanes: number;
    /** Index of these columns, in units of the columns of `lanes` lanes. Default: of the workgroup. */
    readonly part?: KernelText;
  },
): KernelText {
  const { columns } = o.tile;
  const unit = unitOf(o);
  return wgsl`
    let lane_unit = ${part} * ${columns * lanes / unit} + lane % ${lanes};
    @unroll (u < ${columns / unit}) {
      let unit[u] = lane_unit + u * ${lanes};
      @unroll (n < ${unit}) { let column[u * ${unit} + n] = unit[u] * ${unit} + n; }
    }
    ${o.weights.map((_, i) => weightStarts(o, i))}`;
}

/** Declares at<i>[c], scale<i>[c] if weight i has scales, and row_factor<i>[c] if these have factors. */
function weightStarts(o: MatmulOptions, i: number): KernelText {
  const { columns } = o.tile;
  const { stored, scales, factors, inside, rowStride } = o.weights[i]!;
  const rowFactors = factors !== undefined && wgsl`
    @unroll (c < ${columns}) {
      let row_factor${i}[c] = ${factors}[${ofExpert(o, o.columns)} + column[c]];
    }`;
  const [unit, width] = [unitOf(o), widthOf(o)];
  const { block, inWords: isWords }: Partial<Packing> = packingOf(stored) ?? {};
  const rowWords = block
    ? rowStride / block.elements * block.bytes / (isWords ? 4 : 1)
    : rowStride / perWord(stored);
  const hasScales = scales !== undefined && !block;
  if (inside === "k") {
    const along = (base: string, each: number) =>
      wgsl`
      @unroll (c < ${columns}) {
        let ${base}[c] = ${ofExpert(o, o.columns * each)} + column[c] * ${each};
      }`;
    const { perScale = Number(o.k) } = packingOf(stored) ?? {};
    return wgsl`
      ${along(`at${i}`, rowWords)}
      ${hasScales && along(`scale${i}`, Number(o.k) / perScale)}
      ${rowFactors}`;
  }
  // Without a group size, all elements along k share a scale.
  const scaleWords = rowStride / (packingOf(stored)?.perScale ?? Number(o.k));
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
    hasScales && wgsl`
    @unroll (c < ${columns}) {
      let scale${i}[c] = ${ofExpert(o, Number(o.k) * scaleWords)} + column[c];
    }`
  }
    ${rowFactors}`;
}

/** Offset of the weights of the tile's expert, given the words per expert. */
function ofExpert({ grouped }: MatmulOptions, words: number): KernelText {
  if (!grouped) return wgsl`0u`;
  invariant(!Number.isNaN(words), "experts' weights have one size");
  return wgsl`expert * ${words}`;
}
