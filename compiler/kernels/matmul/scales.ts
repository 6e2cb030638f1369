/** The scales of packed weights of a matrix multiplication. */

import {
  type PackedDType,
  packingOf,
  type ScaleKind,
  SCALES,
} from "../../../spec/weights/packed.ts";
import type { StoredDType } from "../../../spec/dtype.ts";
import { loadStored } from "../../../spec/kernel/build.ts";
import { register } from "../../../spec/kernel/registers.ts";
import { EXACT } from "../../../spec/numerics.ts";
import { sumBlocks } from "../../tuning/tile.ts";
import type { Expr, KernelText, Stmt } from "../kernel.ts";
import { expr, local, wgsl } from "../kernel.ts";
import { hasBlocks, scaleOfBlocks } from "./block_weights.ts";
import { byteTableOf, termCount, widthOf } from "./columns.ts";
import type { MatmulOptions } from "./options.ts";
import { decoderOf } from "../pieces/decode.ts";
import { range } from "../../../spec/range.ts";

const K = local("k", "u32");

/** Elements along k that share a scale of weight i. */
export function perScaleOf(o: MatmulOptions, i: number): number {
  return packingOf(o.weights[i]!.stored)!.perScale ?? Number(o.k);
}

/** The dtype of the scales of weight i. */
function scaleTypeOf(o: MatmulOptions, i: number): StoredDType | undefined {
  const packing = packingOf(o.weights[i]!.stored);
  return packing && SCALES[packing.scale].stored;
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
  o: MatmulOptions,
  i: number,
  { columns = range(o.tile.columns), start }: {
    readonly columns?: readonly number[];
    readonly start: KernelText;
  },
): readonly (Stmt | KernelText)[] {
  const count = o.weights[i]!.scales === undefined ? 0 : scalesInBlock(o, i);
  if (count === 0) return [];
  const perScale = perScaleOf(o, i);
  const isBlocks = hasBlocks(o, i);
  if (perScale === Number(o.k) && !isBlocks) {
    return columns.map((column) => {
      const at = register(`scale${i}`, [column], "u32");
      return scaleAt(o, { i, column, group: 0, at });
    });
  }
  const apart = scalesApart(o, i);
  const last = Number(o.k) / perScale - 1;
  const group = (g: number) =>
    g === 0 ? wgsl`group_${i}` : wgsl`min(group_${i} + 1, ${last})`;
  const declared = [
    wgsl`let group_${i} = (${start}) >> ${Math.log2(perScale)}u;`,
    ...count === 1
      ? []
      : [wgsl`let boundary_${i} = (group_${i} + 1) * ${perScale};`],
  ];
  if (isBlocks) {
    return [
      ...declared,
      ...range(count).flatMap((g) => {
        const number = expr`${
          g === 0
            ? local(`group_${i}`, "u32")
            : expr`min(${local(`group_${i}`, "u32")} + 1, ${last})`
        }`;
        return scaleOfBlocks(o, i, { columns, group: g, number });
      }),
    ];
  }
  if (loadsScalesAtOnce(o, i)) {
    const groups = range(count).map(group);
    return [...declared, ...scalesAtOnce(o, i, { columns, groups, last })];
  }
  return [
    ...declared,
    ...columns.flatMap((column) =>
      range(count).map((g) => {
        const word = sharesScaleWords(o, i) && wordOfScale(g, i, column);
        const at = register(`scale_at${g}_${i}`, [column], "u32");
        const declared = wgsl`
      let scale_at${g}_${i}[${column}] = scale${i}[${column}] + ${
          group(g)
        } * ${apart};`;
        if (!word) {
          return wgsl`${declared} ${scaleAt(o, { i, column, group: g, at })}`;
        }
        const begins = column % BYTES === 0 && wgsl`
      ${declared}
      let scale_word${g}_${i}[${column}] = ${o.weights[i]!
          .scales!}[${at} >> 2u];`;
        return wgsl`${begins} ${
          factorOf(o, { i, column, group: g, stored: word })
        }`;
      })
    ),
  ];
}

/** Scales of one byte in a word. */
const BYTES = 4;

/** Whether the scales of a block of a sum are in one load: four bytes along k. */
function loadsScalesAtOnce(o: MatmulOptions, i: number): boolean {
  return byteTableOf(o, i) !== undefined &&
    scaleTypeOf(o, i) === "u8" &&
    Number(o.k) / perScaleOf(o, i) >= BYTES;
}

/** Declares factor<g>_<i>[c] of the scales of a block, from one load per column. `last`: the last group of a column. */
function scalesAtOnce(
  o: MatmulOptions,
  i: number,
  { columns, groups, last }: {
    readonly columns: readonly number[];
    readonly groups: readonly KernelText[];
    readonly last: number;
  },
): readonly KernelText[] {
  const shift = (g: number) => `scale_shift${g}_${i}`;
  const { scales } = o.weights[i]!;
  return [
    // No load goes beyond the scales of a column.
    wgsl`let first_group_${i} = min(group_${i}, ${last + 1 - BYTES});`,
    ...groups.map((group, g) =>
      wgsl`let ${shift(g)} = (${group} - first_group_${i}) * 8;`
    ),
    ...columns.flatMap((column) => {
      const word = register(`scale_bytes${i}`, [column], "u32");
      return [
        wgsl`
      let scale_bytes${i}[${column}] = bytesAt(${scales!}, scale${i}[${column}] + first_group_${i});`,
        ...groups.map((_, g) => {
          const stored = expr`(${word} >> ${local(shift(g), "u32")}) & 255`;
          return factorOf(o, { i, column, group: g, stored });
        }),
      ];
    }),
  ];
}

/** Whether the columns of a vector load share words of one-byte scales. */
function sharesScaleWords(o: MatmulOptions, i: number): boolean {
  const { inside, rowStride } = o.weights[i]!;
  return scaleTypeOf(o, i) === "u8" && inside !== "k" &&
    widthOf(o) === BYTES && rowStride % BYTES === 0;
}

/** The byte of a column's scale, in the lowest bits of a word. */
function wordOfScale(group: number, i: number, column: number): Expr {
  const n = column % BYTES;
  const word = register(`scale_word${group}_${i}`, [column - n], "u32");
  const bits = n === 0 ? word : expr`${word} >> ${8 * n}u`;
  return expr`${bits} & 255`;
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
export function scalesOfIteration(
  o: MatmulOptions,
  { i, column }: { readonly i: number; readonly column: number },
): readonly (Stmt | KernelText)[] {
  if (o.weights[i]!.scales === undefined || scalesInBlock(o, i) > 0) return [];
  const perScale = perScaleOf(o, i);
  const terms = termCount(o);
  if (hasBlocks(o, i)) {
    const number = expr`${K} >> ${Math.log2(perScale / terms)}u`;
    return scaleOfBlocks(o, i, { columns: [column], group: 0, number });
  }
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
  const factor = loadStored(scales!, scaleTypeOf(o, i)!, at);
  const declared = factorOf(o, { i, column, group, stored: factor });
  if (offsets === undefined) return declared;
  const { scale } = packingOf(stored)!;
  const { beforeZero }: ScaleKind = SCALES[scale];
  const loaded = loadStored(offsets, beforeZero ? "u32" : "f32", at);
  return wgsl`
    ${declared}
    let offset${group}_${i}[${column}] = ${
    decoderOf(stored as PackedDType).offset(
      loaded,
      register(`factor${group}_${i}`, [column]),
    )
  };`;
}

/** Declares factor<group>_<i>[column] from its stored scale. */
function factorOf(
  o: MatmulOptions,
  { i, column, group, stored }: {
    readonly i: number;
    readonly column: number;
    readonly group: number;
    readonly stored: Expr;
  },
): KernelText {
  const { stored: dtype, factors, largestScale: most } = o.weights[i]!;
  const { scale } = decoderOf(dtype as PackedDType);
  const step = byteTableOf(o, i)?.step ?? 1;
  const ofRow = factors === undefined
    ? undefined
    : register(`row_factor${i}`, [column]);
  const whole = scale(stored, ofRow);
  const factor = most === undefined
    ? whole
    : wgsl`max(min(${whole}, ${most}), ${-most})`;
  return wgsl`let factor${group}_${i}[${column}] = ${
    step === 1 ? factor : wgsl`${factor} * ${step}`
  };`;
}
