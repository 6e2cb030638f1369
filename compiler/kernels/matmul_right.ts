/** The right operand of a matrix multiplication: the columns of lanes, and the decoding of weights. */

import { isHalf } from "../../spec/dtype.ts";
import { type PackedDType, packingOf } from "../../spec/packed.ts";
import { invariant } from "../../spec/errors.ts";
import { loadStored, u32 } from "../../spec/kernel/build.ts";
import type { Expr, KernelText, Stmt } from "./kernel.ts";
import { bindingsOf, expr, local, wgsl } from "./kernel.ts";
import type { MatmulOptions, MatmulWeight } from "./matmul_options.ts";
import { EXACT } from "../../spec/numerics.ts";
import { sumBlocks } from "../tuning/tile.ts";
import { decoderOf, perWord, unpackHalves } from "./pieces/decode.ts";
import { range } from "./pieces/numbers.ts";
import {
  letRegister,
  loadRegisters,
  register,
} from "../../spec/kernel/registers.ts";

/** Consecutive columns of one invocation: those of a vector load, two per word for packed weights. */
export function unitOf(o: MatmulOptions): number {
  const unit = widthOf(o) * (o.weights.some(inWords) ? 2 : 1);
  invariant(o.tile.columns % unit === 0, "16-bit weights need an even tile");
  return unit;
}

/** Words per load. */
function widthOf(o: MatmulOptions): number {
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

/** Terms of an iteration of a sum: the number of elements per word along k. */
function termCount({ weights }: Pick<MatmulOptions, "weights">): number {
  return Math.max(
    ...weights.map(({ inside, stored }) =>
      inside === "k" ? perWord(stored) : 1
    ),
  );
}

/** One product of an iteration for each sum: the prefix of its operand names, and the name of its index. */
export interface Term {
  readonly prefix: string;
  readonly k: string;
}

/** The only term of an iteration. */
export const SINGLE: Term = { prefix: "", k: "k" };

/** The products of an iteration. */
export function termsOf(o: Pick<MatmulOptions, "weights">): readonly Term[] {
  const count = termCount(o);
  return count === 1 ? [SINGLE] : range(count).map(termAt);
}

/** Term `n` of several. */
export function termAt(n: number): Term {
  return { prefix: n === 0 ? "" : `next${n}_`, k: `k_term${n}` };
}

/** Declares the indices of the products of iteration `k`. */
export function indicesOfTerms(o: MatmulOptions): KernelText {
  const terms = termsOf(o);
  return wgsl`
    ${
    terms.length > 1 &&
    terms.map(({ k }, n) => wgsl`let ${k} = k * ${terms.length} + ${n};`)
  }`;
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

/** Declares at<i>[c], and scale<i>[c] if weight i has scales. */
function weightStarts(o: MatmulOptions, i: number): KernelText {
  const { columns } = o.tile;
  const { stored, scales, inside, rowStride } = o.weights[i]!;
  const [unit, width] = [unitOf(o), widthOf(o)];
  const rowWords = rowStride / perWord(stored);
  if (inside === "k") {
    const along = (base: string, each: number) =>
      wgsl`
      @unroll (c < ${columns}) {
        let ${base}[c] = ${ofExpert(o, o.columns * each)} + column[c] * ${each};
      }`;
    const { perScale = Number(o.k) } = packingOf(stored) ?? {};
    return wgsl`
      ${along(`at${i}`, rowWords)}
      ${scales !== undefined && along(`scale${i}`, Number(o.k) / perScale)}`;
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
    scales !== undefined && wgsl`
    @unroll (c < ${columns}) {
      let scale${i}[c] = ${ofExpert(o, Number(o.k) * scaleWords)} + column[c];
    }`
  }`;
}

/** Offset of the weights of the tile's expert, given the words per expert. */
function ofExpert({ grouped }: MatmulOptions, words: number): KernelText {
  if (!grouped) return wgsl`0u`;
  invariant(!Number.isNaN(words), "experts' weights have one size");
  return wgsl`expert * ${words}`;
}

/** Loads of a binding with this many words, by an index per column. */
function loadsOf(
  o: MatmulOptions,
  { binding, width, index }: {
    readonly binding: string;
    readonly width: number;
    index(column: number): Expr;
  },
) {
  const { type } = o.bindings.find(({ name }) => name === binding)!;
  return (base: string, column: number, apart = 1): Stmt =>
    loadRegisters(base, range(width).map((n) => column + n * apart), {
      binding,
      type,
      index: index(column),
    });
}

const K = local("k", "u32");

/**
 * Declares <prefix>b<i>[c] of each term: the values of weight i for every column, or for some if it has k innermost.
 */
export function rightAt(
  o: MatmulOptions,
  i: number,
  columns: readonly number[] = range(o.tile.columns),
): readonly (Stmt | KernelText)[] {
  const { stored } = o.weights[i]!;
  if (termCount(o) > 1) return wordsAlongK(o, i, columns);
  if (packingOf(stored)) return packedRow(o, i);
  const at = { i, columns, prefix: "", k: K };
  return [...wordsAt(o, at), ...valuesAt(o, at)];
}

/** Values of a weight at one index of k. */
interface RightTerm {
  /** The weight. */
  readonly i: number;
  readonly columns: readonly number[];
  readonly prefix: string;
}

/** Declares <prefix>b<i>[c], or <prefix>word<i>[c] if two columns share a word. */
export function wordsAt(
  o: MatmulOptions,
  { i, columns, prefix, k }: RightTerm & { readonly k: Expr },
): readonly Stmt[] {
  const { binding, stored, inside, rowStride } = o.weights[i]!;
  const width = inside === "k" ? 1 : widthOf(o);
  const apart = inside === "k" ? 1 : rowStride / perWord(stored) / width;
  const half = isHalf(stored);
  const load = loadsOf(o, {
    binding,
    width,
    index: (c) => expr`${register(`at${i}`, [c], "u32")} + ${k} * ${apart}`,
  });
  return columns.filter((c) => c % (width * (half ? 2 : 1)) === 0).map((c) =>
    half ? load(`${prefix}word${i}`, c, 2) : load(`${prefix}b${i}`, c)
  );
}

/** Declares <prefix>b<i>[c] of both elements of <prefix>word<i>[c], which are adjacent columns. */
export function valuesAt(
  o: MatmulOptions,
  { i, columns, prefix }: RightTerm,
): readonly Stmt[] {
  const { stored } = o.weights[i]!;
  if (!isHalf(stored)) return [];
  return columns.filter((c) => c % 2 === 0).flatMap((c) =>
    unpackHalves(stored, register(`${prefix}word${i}`, [c], "u32")).map(
      (value, n) => letRegister(`${prefix}b${i}`, [c + n], value),
    )
  );
}

/** `rightAt` for elements that share words along k, with scales. */
function packedRow(
  o: MatmulOptions,
  i: number,
): readonly (Stmt | KernelText)[] {
  const { stored, offsets } = o.weights[i]!;
  const { perWord } = packingOf(stored)!;
  return [
    ...codesAt(o, { i, prefix: "", k: K }),
    ...range(o.tile.columns)
      .flatMap((column) => scalesOfIteration(o, { i, column })),
    wgsl`let bit${i} = (k & ${perWord - 1}) * ${32 / perWord};`,
    ...range(o.tile.columns).map((column) =>
      letRegister(
        `b${i}`,
        [column],
        packedElement(stored as PackedDType, {
          bits: expr`${register(`codes${i}`, [column], "u32")} >> ${
            local(`bit${i}`, "u32")
          }`,
          factor: scaleOf(o, "factor", { i, column, k: K }),
          offset: offsets === undefined
            ? undefined
            : scaleOf(o, "offset", { i, column, k: K }),
        }),
      )
    ),
  ];
}

/** Declares <prefix>codes<i>[c]: the words with index `k` of weight i. */
export function codesAt(
  o: MatmulOptions,
  { i, prefix, k }: {
    readonly i: number;
    readonly prefix: string;
    readonly k: Expr;
  },
): readonly Stmt[] {
  const { binding, stored, rowStride } = o.weights[i]!;
  const width = widthOf(o);
  const codes = loadsOf(o, {
    binding,
    width,
    index: (c) =>
      expr`${register(`at${i}`, [c], "u32")} + (${k} >> ${
        Math.log2(perWord(stored))
      }u) * ${rowStride / width}`,
  });
  return range(o.tile.columns).filter((c) => c % width === 0)
    .map((c) => codes(`${prefix}codes${i}`, c));
}

/** `rightAt` of several terms whose elements share words along k. */
function wordsAlongK(
  o: MatmulOptions,
  i: number,
  columns: readonly number[],
): readonly (Stmt | KernelText)[] {
  const { stored, inside, binding, offsets } = o.weights[i]!;
  invariant(inside === "k", "all weights of a matmul are laid out equally");
  const terms = termsOf(o);
  const per = perWord(stored);
  const words = terms.length / per;
  const loads = range(words).map((n) => {
    const base = per > 1 ? `word${n}_${i}` : `${terms[n]!.prefix}b${i}`;
    const load = loadsOf(o, {
      binding,
      width: 1,
      index: (c) =>
        expr`${register(`at${i}`, [c], "u32")} + (${K} * ${words} + ${n})`,
    });
    return (c: number) => load(base, c);
  });
  const k = expr`${K} * ${terms.length}`;
  return columns.flatMap((c) => [
    ...loads.map((load) => load(c)),
    ...scalesOfIteration(o, { i, column: c }),
    ...per === 1 ? [] : terms.map(({ prefix }, n) => {
      const word = register(`word${Math.floor(n / per)}_${i}`, [c], "u32");
      return letRegister(
        `${prefix}b${i}`,
        [c],
        isHalf(stored)
          ? unpackHalves(stored, word)[n % 2]!
          : packedElement(stored as PackedDType, {
            bits: expr`${word} >> ${(n % per) * 32 / per}u`,
            factor: scaleOf(o, "factor", { i, column: c, k, n }),
            offset: offsets === undefined
              ? undefined
              : scaleOf(o, "offset", { i, column: c, k, n }),
          }),
      );
    }),
  ]);
}

/** An element times its scale, plus its offset if there is one. */
export function packedElement(
  stored: PackedDType,
  { bits, factor, offset }: {
    /** Its code is in the lowest bits. */
    readonly bits: Expr;
    readonly factor: Expr;
    readonly offset: Expr | undefined;
  },
): Expr {
  const scaled = expr`${
    decoderOf(stored).element(wgsl`(${bits})`)
  } * ${factor}`;
  return offset ? expr`${scaled} + ${offset}` : scaled;
}

/** Elements along k that share a scale of weight i. */
export function perScaleOf(o: MatmulOptions, i: number): number {
  return packingOf(o.weights[i]!.stored)!.perScale ?? Number(o.k);
}

/** Elements between consecutive scales of a column. */
function scalesApart(o: MatmulOptions, i: number): number {
  const { inside, rowStride } = o.weights[i]!;
  return inside === "k" ? 1 : rowStride;
}

/** Scales of a column in one block of a sum, which are loaded once per block: 1, or 2 if groups start within blocks. 0: more. */
export function scalesInBlock(o: MatmulOptions, i: number): 0 | 1 | 2 {
  const perScale = perScaleOf(o, i);
  if (perScale === Number(o.k)) return 1;
  const { length = EXACT.block, ofSegment = 1 } = sumBlocks(o) ?? {};
  if (perScale < length) return 0;
  const segment = Number(o.k) / (o.segments ?? 1);
  const starts = ofSegment === 1 ? [segment] : [segment, length];
  // Without segments, blocks start at multiples of their length.
  const aligned = (o.segments ?? 1) === 1
    ? perScale % length === 0
    : starts.every((start) => start % perScale === 0 || perScale % start === 0);
  return aligned ? 1 : 2;
}

/**
 * Declares factor<g>_<i>[c] and offset<g>_<i>[c] of each scale of the block of a sum that starts at index `start`, and
 * boundary_<i>, the first index with the second scale; nothing if they are loaded in every iteration.
 */
export function scalesOfBlock(
  o: MatmulOptions,
  i: number,
  { columns = range(o.tile.columns), start }: {
    readonly columns?: readonly number[];
    readonly start: KernelText;
  },
): readonly KernelText[] {
  const count = o.weights[i]!.scales === undefined ? 0 : scalesInBlock(o, i);
  if (count === 0) return [];
  const perScale = perScaleOf(o, i);
  if (perScale === Number(o.k)) {
    return columns.map((column) => {
      const at = register(`scale${i}`, [column], "u32");
      return scaleAt(o, { i, column, group: 0, at });
    });
  }
  const apart = scalesApart(o, i);
  const last = Number(o.k) / perScale - 1;
  const group = (g: number) =>
    g === 0 ? wgsl`group_${i}` : wgsl`min(group_${i} + 1, ${last})`;
  return [
    wgsl`let group_${i} = (${start}) >> ${Math.log2(perScale)}u;`,
    ...count === 1
      ? []
      : [wgsl`let boundary_${i} = (group_${i} + 1) * ${perScale};`],
    ...columns.flatMap((column) =>
      range(count).map((g) =>
        wgsl`
      let scale_at${g}_${i}[${column}] = scale${i}[${column}] + ${
          group(g)
        } * ${apart};
      ${
          scaleAt(o, {
            i,
            column,
            group: g,
            at: register(`scale_at${g}_${i}`, [column], "u32"),
          })
        }`
      )
    ),
  ];
}

/** The factor or offset of an element at index `k`, or at term `n` of an iteration that starts there. */
export function scaleOf(
  o: MatmulOptions,
  part: "factor" | "offset",
  { i, column, k, n = 0 }: {
    readonly i: number;
    readonly column: number;
    readonly k: Expr;
    readonly n?: number;
  },
): Expr {
  const of = (group: number) => register(`${part}${group}_${i}`, [column]);
  const count = scalesInBlock(o, i);
  if (count === 0) return of(Math.floor(n / perScaleOf(o, i)));
  return count === 1
    ? of(0)
    : expr`select(${of(0)}, ${of(1)}, ${k} >= ${
      local(`boundary_${i}`, "u32")
    })`;
}

/** Declares factor<g>_<i>[column] and offset<g>_<i>[column] for each scale of iteration `k`. */
function scalesOfIteration(
  o: MatmulOptions,
  { i, column }: { readonly i: number; readonly column: number },
): readonly KernelText[] {
  if (o.weights[i]!.scales === undefined || scalesInBlock(o, i) > 0) return [];
  const perScale = perScaleOf(o, i);
  const terms = termCount(o);
  const first = register(`scale${i}`, [column], "u32");
  if (perScale >= terms) {
    const at = expr`${first} + (${K} >> ${Math.log2(perScale / terms)}u) * ${
      scalesApart(o, i)
    }`;
    return [scaleAt(o, { i, column, group: 0, at })];
  }
  const inIteration = terms / perScale;
  return range(inIteration).map((group) =>
    scaleAt(o, {
      i,
      column,
      group,
      at: expr`${first} + ${K} * ${inIteration} + ${group}`,
    })
  );
}

/** Declares factor<group>_<i>[column] and, if weight i has offsets, offset<group>_<i>[column]. */
function scaleAt(
  o: MatmulOptions,
  { i, column, group, at }: {
    readonly i: number;
    readonly column: number;
    readonly group: number;
    /** Index of the scale. */
    readonly at: Expr;
  },
): KernelText {
  const { stored, scales, offsets } = o.weights[i]!;
  const { scale: dtype } = packingOf(stored)!;
  const factor = loadStored(scales!, dtype, at);
  const { scale } = decoderOf(stored as PackedDType);
  return wgsl`
    let factor${group}_${i}[${column}] = ${scale(factor)};
    ${
    offsets !== undefined &&
    wgsl`let offset${group}_${i}[${column}] = ${
      loadStored(offsets, "f32", at)
    };`
  }`;
}
