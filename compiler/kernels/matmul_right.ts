/** The right operand of a matrix multiplication: where lanes find their columns, and how weights become numbers. */

import { type PackedDType, packingOf } from "../../spec/packed.ts";
import { invariant } from "../../spec/errors.ts";
import { u32 } from "../../spec/kernel/build.ts";
import { type Hole, type KernelText, wgsl } from "../../spec/kernel/text.ts";
import { bindingsOf } from "./kernel.ts";
import type { MatmulOptions, MatmulWeight } from "./matmul_tile.ts";
import { DECODERS, halves, isPacked, perWord } from "./pieces/decode.ts";
import { range } from "./pieces/numbers.ts";

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
      const unit = width * (isPacked(stored) ? 2 : 1);
      return isPacked(stored) === isPacked(o.weights[0]!.stored) &&
        rowStride % unit === 0 && o.tile.columns % unit === 0;
    })
  ) ?? 1;
}

/** Whether words hold two neighbouring columns. */
function inWords({ stored, inside }: MatmulWeight): boolean {
  return isPacked(stored) && inside !== "k";
}

/** Whether turns of a sum take two terms: words hold two that follow each other along k. */
export function takesPairs(o: Pick<MatmulOptions, "weights">): boolean {
  return o.weights.some((w) => isPacked(w.stored) && !inWords(w));
}

/**
 * column<c>: the result's. at<w>_<c>: where weight w of that column is read at k = 0, in words that are loaded at once;
 * scale<w>_<c>: where its scales start. Units of lanes that are side by side are so too, and their loads contiguous. Beyond
 * the last column something is read, and nothing written.
 */
export function columnsAndWeights(
  o: MatmulOptions,
  lanes: number,
): KernelText {
  const { columns } = o.tile;
  const [unit, width] = [unitOf(o), widthOf(o)];
  const units = range(columns, unit).map((first, j) =>
    wgsl`
      let unit${j} = lane_unit + ${j * lanes};
      ${
      range(unit).map((i) =>
        wgsl`let column${first + i} = unit${j} * ${unit} + ${i};`
      )
    }`
  );
  const starts = o.weights.map((w, i) => {
    if (w.inside === "k") return rowsAlongK(o, i);
    const packed = isPacked(w.stored);
    invariant(!packed || w.rowStride % 2 === 0, "packed rows are even");
    const apart = packed || width > 1 ? unit : 1;
    const places = (name: string, perWord: number) =>
      range(columns, apart).map((c) => {
        const place = apart > 1 ? `unit${c / apart}` : `column${c}`;
        const expert = ofExpert(o, w.rowStride / perWord / width);
        return wgsl`let ${name}_${c} = ${expert} + ${place};`;
      });
    return wgsl`
      ${places(`at${i}`, perWord(w.stored))}
      ${w.scales !== undefined && places(`scale${i}`, perScaleOf(o, w))}`;
  });
  return wgsl`
    let lane_unit = group.y * ${columns * lanes / unit} + lane % ${lanes};
    ${units}
    ${starts}`;
}

/** Elements along k that share a scale. */
function perScaleOf({ k }: MatmulOptions, { stored }: MatmulWeight): number {
  invariant(typeof k === "number", "packed weights have one size");
  return packingOf(stored)?.perScale ?? k;
}

/** at<w>_<c>: the word at which the row of a column starts. */
function rowsAlongK(o: MatmulOptions, i: number): KernelText {
  const { stored, rowStride } = o.weights[i]!;
  const rowWords = rowStride / perWord(stored);
  const expert = o.grouped ? wgsl`expert * ${o.columns * rowWords}` : wgsl`0u`;
  return wgsl`${
    range(o.tile.columns).map((c) =>
      wgsl`let at${i}_${c} = ${expert} + column${c} * ${rowWords};`
    )
  }`;
}

/** Where the weights of the tile's expert start, whose rows have `rowWords` words. */
function ofExpert({ k, grouped }: MatmulOptions, rowWords: number): KernelText {
  if (!grouped) return wgsl`0u`;
  invariant(typeof k === "number", "experts' weights have one size");
  return wgsl`expert * ${k * rowWords}`;
}

/** Declares b<i>_<c>: the values of weight i at k for every column. */
export function rightRow(o: MatmulOptions, i: number): KernelText {
  const w = o.weights[i]!;
  const width = widthOf(o);
  const { binding, stored } = w;
  if (w.inside === "k") {
    return wgsl`${
      range(o.tile.columns).map((c) =>
        wgsl`let b${i}_${c} = ${binding}[at${i}_${c} + k];`
      )
    }`;
  }
  if (packingOf(stored)) return packedRow(o, i, w);
  const row = wgsl`k * ${w.rowStride / perWord(stored) / width}`;
  const unit = isPacked(stored) ? 2 * width : width;
  return wgsl`${
    range(o.tile.columns, unit).map((c) => {
      const index = wgsl`at${i}_${c} + ${row}`;
      if (!isPacked(stored)) {
        const names = range(width).map((n) => `b${i}_${c + n}`);
        return words(names, binding, index);
      }
      const names = range(width).map((n) => `word${i}_${c + 2 * n}`);
      const decoded = names.map((word, n) => {
        const [low, high] = halves(stored, word);
        return wgsl`
          let b${i}_${c + 2 * n} = ${low};
          let b${i}_${c + 2 * n + 1} = ${high};`;
      });
      return wgsl`${words(names, binding, index)} ${decoded}`;
    })
  }`;
}

/** Declares b<i>_<c> and next_b<i>_<c>: the values of weight i at 2 * k and after it for every column. */
export function rightPair(o: MatmulOptions, i: number): KernelText {
  const { stored, inside, binding } = o.weights[i]!;
  invariant(inside === "k", "all weights of a matmul lie alike");
  return wgsl`${
    range(o.tile.columns).map((c) => {
      const [at, b] = [`at${i}_${c}`, `b${i}_${c}`];
      if (!isPacked(stored)) {
        return wgsl`
          let ${b} = ${binding}[${at} + k_even];
          let next_${b} = ${binding}[${at} + k_odd];`;
      }
      const [low, high] = halves(stored, `word${i}_${c}`);
      return wgsl`
        let word${i}_${c} = ${binding}[${at} + k];
        let ${b} = ${low};
        let next_${b} = ${high};`;
    })
  }`;
}

/** The same from words that follow each other along k, with scales. */
function packedRow(
  o: MatmulOptions,
  i: number,
  { rowStride, binding, scales, stored }: MatmulWeight,
): KernelText {
  const { perWord, perScale } = packingOf(stored)!;
  const decoder = DECODERS[stored as PackedDType];
  const width = widthOf(o);
  const stride = rowStride / width;
  const bits = 32 / perWord;
  /** Where column c has the word, or the scale, of `per` elements along k. */
  const at = (name: string, per: number) =>
    wgsl`${name} + (k >> ${Math.log2(per)}u) * ${stride}`;
  return wgsl`${
    range(o.tile.columns, width).map((first) => {
      const columns = range(width).map((n) => first + n);
      const codes = columns.map((c) => `codes${i}_${c}`);
      const loaded = columns.map((c) => `stored_scale${i}_${c}`);
      const start = `scale${i}_${first}`;
      const decoded = columns.map((c) =>
        wgsl`
          let bits${i}_${c} = codes${i}_${c} >> ((k & ${
          perWord - 1
        }) * ${bits});
          let factor${i}_${c} = ${decoder.scale(`stored_scale${i}_${c}`)};
          let b${i}_${c} = ${
          decoder.element(`bits${i}_${c}`)
        } * factor${i}_${c};`
      );
      return wgsl`
        ${words(codes, binding, at(`at${i}_${first}`, perWord))}
        ${words(loaded, scales!, perScale ? at(start, perScale) : start)}
        ${decoded}`;
    })
  }`;
}

/** Name one, two or four words that are side by side; the index counts so many. */
function words(
  names: readonly string[],
  binding: string,
  index: Hole,
): KernelText {
  const [a, b, c, d] = names;
  if (names.length === 1) return wgsl`let ${a} = ${binding}[${index}];`;
  return names.length === 2
    ? wgsl`let (${a}, ${b}) = vec2(${binding})[${index}];`
    : wgsl`let (${a}, ${b}, ${c}, ${d}) = vec4(${binding})[${index}];`;
}
