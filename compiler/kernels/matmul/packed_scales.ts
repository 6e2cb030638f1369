/** Scales and offsets of packed weights in bindings of their own. */

import {
  type PackedDType,
  PACKINGS,
  type ScaleKind,
  SCALES,
} from "../../../spec/weights/packed.ts";
import { loadStored } from "../../../spec/kernel/build.ts";
import { register } from "../../../spec/kernel/registers.ts";
import { range } from "../../../spec/range.ts";
import type { Expr, KernelText } from "../kernel.ts";
import { expr, local, wgsl } from "../kernel.ts";
import { decoderOf } from "../pieces/decode.ts";
import type { LoadedMatmul, WeightScales } from "./decoder.ts";
import { groupsOfBlock } from "./scales.ts";

/** Scales of one byte in a word. */
const BYTES = 4;

/** The separate scales of weight i. */
interface SeparateScales {
  readonly o: LoadedMatmul;
  readonly i: number;
  /** Elements along k that share one. */
  readonly elements: number;
  /** Elements between consecutive scales of a column. */
  readonly apart: number;
  readonly kind: ScaleKind;
  /** Factor of each scale. */
  readonly step: number;
  /** Limit of their magnitudes. Undefined: none. */
  readonly largestScale: number | undefined;
}

/** The separate scales of weight i. `step`: multiplied with each. `largestScale`: limit of their magnitudes. */
export function separateScales(
  o: LoadedMatmul,
  i: number,
  of: Pick<SeparateScales, "step" | "largestScale">,
): WeightScales {
  const { stored, inside, rowStride, offsets } = o.weights[i]!;
  const { perScale = Number(o.k), scale } = PACKINGS[stored as PackedDType];
  const s: SeparateScales = {
    o,
    i,
    elements: perScale,
    apart: inside === "k" ? 1 : rowStride,
    kind: SCALES[scale],
    ...of,
  };
  const first = (column: number) => register(`scale${i}`, [column], "u32");
  return {
    elements: perScale,
    hasOffsets: offsets !== undefined,
    ofBlock: (count, { columns, start }) => {
      if (perScale === Number(o.k)) {
        return columns.map((column) =>
          scaleAt(s, { column, group: 0, at: first(column) })
        );
      }
      const { declared, groups, last } = groupsOfBlock(o, i, {
        elements: perScale,
        count,
        start,
      });
      return [
        ...declared,
        ...loadsAtOnce(s)
          ? scalesAtOnce(s, { columns, groups, last })
          : scalesOneByOne(s, { columns, groups }),
      ];
    },
    ofIteration: (column) => {
      const k = local("k", "u32");
      if (perScale >= o.termCount) {
        const shift = Math.log2(perScale / o.termCount);
        const at = expr`${first(column)} + (${k} >> ${shift}u) * ${s.apart}`;
        return [scaleAt(s, { column, group: 0, at })];
      }
      const inIteration = o.termCount / perScale;
      return range(inIteration).map((group) =>
        scaleAt(s, {
          column,
          group,
          at: expr`${first(column)} + ${k} * ${inIteration} + ${group}`,
        })
      );
    },
  };
}

/** Groups of a block of a sum, in some columns. */
interface Groups {
  readonly columns: readonly number[];
  /** Their numbers along k. */
  readonly groups: readonly Expr[];
}

/** Declares the scales of a block with a load for each, or for those of adjacent columns in a word. */
function scalesOneByOne(
  s: SeparateScales,
  { columns, groups }: Groups,
): readonly KernelText[] {
  const { o, i, apart } = s;
  const shares = sharesWords(s);
  return columns.flatMap((column) =>
    groups.map((number, group) => {
      const at = register(`scale_at${group}_${i}`, [column], "u32");
      const declared = wgsl`
      let scale_at${group}_${i}[${column}] = scale${i}[${column}] + ${number} * ${apart};`;
      if (!shares) {
        return wgsl`${declared} ${scaleAt(s, { column, group, at })}`;
      }
      const n = column % BYTES;
      const word = register(`scale_word${group}_${i}`, [column - n], "u32");
      const begins = n === 0 && wgsl`
      ${declared}
      let scale_word${group}_${i}[${column}] = ${o.weights[i]!
        .scales!}[${at} >> 2u];`;
      const bits = n === 0 ? word : expr`${word} >> ${8 * n}u`;
      const stored = expr`${bits} & 255`;
      return wgsl`${begins} ${factorOf(s, { column, group, stored })}`;
    })
  );
}

/** Whether the columns of a vector load share words of one-byte scales. */
function sharesWords({ o, i, kind }: SeparateScales): boolean {
  const { inside, rowStride } = o.weights[i]!;
  return kind.stored === "u8" && inside !== "k" && o.width === BYTES &&
    rowStride % BYTES === 0;
}

/** Whether the scales of a block of a sum are in one load: four bytes along k. */
function loadsAtOnce({ o, i, elements, kind }: SeparateScales): boolean {
  return o.tile.right === "workgroup" && o.weights[i]!.inside === "k" &&
    kind.stored === "u8" && Number(o.k) / elements >= BYTES;
}

/** Declares the scales of a block, from one load per column. `last`: the last group of a column. */
function scalesAtOnce(
  { o, i, ...s }: SeparateScales,
  { columns, groups, last }: Groups & { readonly last: number },
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
        ...groups.map((_, group) => {
          const stored = expr`(${word} >> ${local(shift(group), "u32")}) & 255`;
          return factorOf({ o, i, ...s }, { column, group, stored });
        }),
      ];
    }),
  ];
}

/** A scale of a group in a column. */
interface ScaleOf {
  readonly column: number;
  readonly group: number;
}

/** Declares factor<group>_<i>[column] and, if there are offsets, offset<group>_<i>[column]. */
function scaleAt(
  s: SeparateScales,
  { at, ...of }: ScaleOf & {
    /** Index of the scale. */
    readonly at: Expr;
  },
): KernelText {
  const { o, i, kind } = s;
  const { stored, scales, offsets } = o.weights[i]!;
  const factor = loadStored(scales!, kind.stored, at);
  const declared = factorOf(s, { ...of, stored: factor });
  if (offsets === undefined) return declared;
  const loaded = loadStored(offsets, kind.beforeZero ? "u32" : "f32", at);
  return wgsl`
    ${declared}
    let offset${of.group}_${i}[${of.column}] = ${
    decoderOf(stored as PackedDType).offset(
      loaded,
      register(`factor${of.group}_${i}`, [of.column]),
    )
  };`;
}

/** Declares factor<group>_<i>[column] from its stored scale. */
function factorOf(
  { o, i, step, largestScale: most }: SeparateScales,
  { column, group, stored }: ScaleOf & { readonly stored: Expr },
): KernelText {
  const { stored: dtype, factors } = o.weights[i]!;
  const { scale } = decoderOf(dtype as PackedDType);
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
