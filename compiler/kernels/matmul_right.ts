/** The right operand of a matrix multiplication: where lanes find their columns, and how weights become numbers. */

import { isHalf } from "../../spec/dtype.ts";
import { type PackedDType, packingOf } from "../../spec/packed.ts";
import { invariant } from "../../spec/errors.ts";
import { u32 } from "../../spec/kernel/build.ts";
import { bindingsOf, type Hole, type KernelText, wgsl } from "./kernel.ts";
import type { MatmulOptions, MatmulWeight } from "./matmul_tile.ts";
import { DECODERS, halves, perWord } from "./pieces/decode.ts";

/** Consecutive columns of one invocation: those of words that are loaded at once, two to a word where weights are packed. */
export function unitOf(o: MatmulOptions): number {
  const unit = widthOf(o) * (o.weights.some(inWords) ? 2 : 1);
  invariant(o.tile.columns % unit === 0, "16-bit weights need an even tile");
  return unit;
}

/** Words that are loaded at once. */
function widthOf(o: MatmulOptions): number {
  if (o.tile.right !== "vector") return 1;
  const left = bindingsOf(o.left(o.leftRow(u32(0)), u32(0)));
  // What is loaded in vectors is loaded in no other way.
  if (o.weights.some(({ binding }) => left.has(binding))) return 1;
  return [4, 2].find((width) =>
    o.weights.every(({ stored, rowStride }) => {
      const unit = width * (isHalf(stored) ? 2 : 1);
      return isHalf(stored) === isHalf(o.weights[0]!.stored) &&
        rowStride % unit === 0 && o.tile.columns % unit === 0;
    })
  ) ?? 1;
}

/** Whether words hold two neighbouring columns. */
function inWords({ stored, inside }: MatmulWeight): boolean {
  return isHalf(stored) && inside !== "k";
}

/** Whether turns of a sum take two terms: words hold two that follow each other along k. */
export function takesPairs(o: Pick<MatmulOptions, "weights">): boolean {
  return o.weights.some((w) => isHalf(w.stored) && !inWords(w));
}

/**
 * column[c]: the result's. at<w>[c]: where weight w of that column is read at k = 0, in words that are loaded at once;
 * scale<w>[c]: where its scales start. Units of lanes that are side by side are so too, and their loads contiguous. Beyond
 * the last column something is read, and nothing written.
 */
export function columnsAndWeights(
  o: MatmulOptions,
  lanes: number,
): KernelText {
  const { columns } = o.tile;
  const [unit, width] = [unitOf(o), widthOf(o)];
  const starts = o.weights.map(({ stored, scales, inside, rowStride }, i) => {
    const rowWords = rowStride / perWord(stored);
    if (inside === "k") {
      return wgsl`
        @unroll (c < ${columns}) {
          let at${i}[c] = ${
        ofExpert(o, o.columns * rowWords)
      } + column[c] * ${rowWords};
        }`;
    }
    // Without a number of elements that share a scale, all along k do.
    const scaleWords = rowStride / (packingOf(stored)?.perScale ?? Number(o.k));
    const packed = isHalf(stored);
    invariant(!packed || rowStride % 2 === 0, "packed rows are even");
    const apart = packed || width > 1 ? unit : 1;
    const place = apart > 1 ? wgsl`unit[c / ${apart}]` : wgsl`column[c]`;
    const starts = (name: string, words: number) =>
      wgsl`
      @unroll (c < ${columns} by ${apart}) {
        let ${name}[c] = ${ofExpert(o, Number(o.k) * words / width)} + ${place};
      }`;
    return wgsl`
      ${starts(`at${i}`, rowWords)}
      ${scales !== undefined && starts(`scale${i}`, scaleWords)}`;
  });
  return wgsl`
    let lane_unit = group.y * ${columns * lanes / unit} + lane % ${lanes};
    @unroll (u < ${columns / unit}) {
      let unit[u] = lane_unit + u * ${lanes};
      @unroll (n < ${unit}) { let column[u * ${unit} + n] = unit[u] * ${unit} + n; }
    }
    ${starts}`;
}

/** Where the weights of the tile's expert start, of which each has so many words. */
function ofExpert({ grouped }: MatmulOptions, words: number): KernelText {
  if (!grouped) return wgsl`0u`;
  invariant(!Number.isNaN(words), "experts' weights have one size");
  return wgsl`expert * ${words}`;
}

/** Declares b<i>[c]: the values of weight i at k for every column. */
export function rightRow(o: MatmulOptions, i: number): KernelText {
  const { binding, stored, inside, rowStride, scales } = o.weights[i]!;
  const width = inside === "k" ? 1 : widthOf(o);
  const row = (k: Hole, perWord: number) =>
    wgsl`at${i}[c] + ${k} * ${
      inside === "k" ? 1 : rowStride / perWord / width
    }`;
  const loads = { width, binding, index: row("k", perWord(stored)) };
  const columns = (unit: number, body: KernelText) =>
    wgsl`@unroll (c < ${o.tile.columns} by ${unit}) { ${body} }`;
  if (isHalf(stored)) {
    const [low, high] = halves(stored, wgsl`word${i}[c + n]`);
    return columns(
      2 * width,
      wgsl`
      ${words(`word${i}`, { ...loads, apart: 2 })}
      @unroll (n < ${2 * width} by 2) {
        let b${i}[c + n] = ${low};
        let b${i}[c + n + 1] = ${high};
      }`,
    );
  }
  const packing = packingOf(stored);
  if (!packing) return columns(width, words(`b${i}`, loads));
  // Words follow each other along k, with scales.
  const decoder = DECODERS[stored as PackedDType];
  const bits = 32 / packing.perWord;
  const along = (name: string, per: number) =>
    wgsl`${name}[c] + (k >> ${Math.log2(per)}u) * ${rowStride / width}`;
  const { perScale } = packing;
  const scale = perScale ? along(`scale${i}`, perScale) : wgsl`scale${i}[c]`;
  const codes = { width, binding, index: along(`at${i}`, packing.perWord) };
  return columns(
    width,
    wgsl`
    ${words(`codes${i}`, codes)}
    ${words(`stored_scale${i}`, { width, binding: scales!, index: scale })}
    @unroll (n < ${width}) {
      let bits${i}[c + n] = codes${i}[c + n] >> ((k & ${
      packing.perWord - 1
    }) * ${bits});
      let factor${i}[c + n] = ${decoder.scale(wgsl`stored_scale${i}[c + n]`)};
      let b${i}[c + n] = ${
      decoder.element(wgsl`bits${i}[c + n]`)
    } * factor${i}[c + n];
    }`,
  );
}

/** Declares b<i>[c] and next_b<i>[c]: the values of weight i at 2 * k and after it for every column. */
export function rightPair(o: MatmulOptions, i: number): KernelText {
  const { stored, inside, binding } = o.weights[i]!;
  invariant(inside === "k", "all weights of a matmul are laid out equally");
  const [low, high] = isHalf(stored)
    ? halves(stored, wgsl`word${i}[c]`)
    : ["k_even", "k_odd"].map((k) => wgsl`${binding}[at${i}[c] + ${k}]`);
  return wgsl`
    @unroll (c < ${o.tile.columns}) {
      ${isHalf(stored) && wgsl`let word${i}[c] = ${binding}[at${i}[c] + k];`}
      let b${i}[c] = ${low};
      let next_b${i}[c] = ${high};
    }`;
}

/** Loads name[c] and others `apart` behind it: one, two or four words that are side by side. The index counts so many. */
function words(
  name: string,
  { width, binding, index, apart = 1 }: {
    readonly width: number;
    readonly binding: string;
    readonly index: Hole;
    readonly apart?: number;
  },
): KernelText {
  if (width === 1) return wgsl`let ${name}[c] = ${binding}[${index}];`;
  return width === 2
    ? wgsl`let (${name}[c], ${name}[c + ${apart}]) = vec2(${binding})[${index}];`
    : wgsl`
      let (${name}[c], ${name}[c + ${apart}], ${name}[c + ${
      2 * apart
    }], ${name}[c + ${3 * apart}])
        = vec4(${binding})[${index}];`;
}
