/** Scales that a lane of a matrix multiplication of bytes loads together, with weights along k as in files. */

import { teamsOf } from "../../tuning/lanes.ts";
import type { KernelText } from "../kernel.ts";
import { wgsl } from "../kernel.ts";
import { HEADER_WORDS } from "../pieces/block.ts";
import {
  type BytesMatmul,
  type BytesOperand,
  indexOf,
} from "./bytes_operands.ts";
import type { FactorPart, Header } from "./bytes_decoder.ts";
import { SCALE_WORDS, type SumName, type Sums } from "./bytes_sums.ts";
import {
  factorFrom,
  letBlocks,
  letFactor,
  letTwoFactors,
  operandsOf,
} from "./bytes_weights.ts";

/** Scales that are loaded together. */
interface LoadedScales {
  /** Loads those of a column before its parts. */
  readonly before?: KernelText;
  /** Loads those of a part of a sum. */
  readonly load?: KernelText;
  /** Declares the factor of a sum. */
  of(part: FactorPart, at: SumName): KernelText;
}

/** The scales of a column, loaded together along k. Undefined if they are not adjacent. */
export function loadedScales(
  o: BytesMatmul,
  sums: Sums,
  inPart: number,
): LoadedScales | undefined {
  const { inside, storeHeader } = sums.weight;
  if (inside !== "k") return undefined;
  if (storeHeader) return headersOfPart(o, sums, inPart);
  const words = bytesOfColumn(o, sums.weight);
  return words === undefined
    ? scalesOfPart(o, sums, inPart)
    : scalesOfColumn(o, sums, words);
}

/** Scales of one byte that a lane loads together, four in each word. */
const RUN = 16;

/** Words of the scales of a column as bytes in runs, of which the last ends with the last scale. Undefined: others. */
function bytesOfColumn(
  o: BytesMatmul,
  { inside, perScale, hasOffsets }: BytesOperand,
): number | undefined {
  const count = o.k / perScale;
  const words = Math.ceil(count / RUN) * RUN / 4;
  const all = operandsOf(o).every(({ scaleOfByte }) => scaleOfByte);
  return all && inside === "k" && !hasOffsets && count >= RUN &&
      words * teamsOf(o).lanes <= SCALE_WORDS
    ? words
    : undefined;
}

/** Declares the workgroup memory of the scales of a column: that of the largest weight. */
export function declareColumn(o: BytesMatmul): KernelText {
  const words = Math.max(
    ...operandsOf(o).map((weight) => bytesOfColumn(o, weight) ?? 0),
  );
  return words === 0
    ? wgsl``
    : wgsl`var<workgroup> column_scales: array<u32, ${
      words * teamsOf(o).lanes
    }>;`;
}

/** The scales of a column, as words of bytes. */
function scalesOfColumn(
  o: BytesMatmul,
  { weight, columns }: Sums,
  words: number,
): LoadedScales {
  const { perScale, sumOf, scales } = weight;
  const { lanes } = teamsOf(o);
  const [c = 0] = columns;
  const count = o.k / perScale;
  const full = count - count % RUN;
  const sums = perScale / sumOf;
  const first = indexOf(o, weight, { each: count, c, n: wgsl`first_scale` });
  return {
    before: wgsl`
      for (var run = 0u; run < ${words}; run += ${RUN / 4}) {
        let first_scale = min(run * 4, ${count - RUN});
        for (var word = 0u; word < ${RUN / 4}; word++) {
          column_scales[(run + word) * ${lanes} + lane_column] = bytesAt(${scales}, ${first} + word * 4);
        }
      }`,
    of: (part, { name, n }) => {
      const group = sums === 1 ? n : wgsl`((${n}) / ${sums})`;
      const at = `${name}_at`;
      const word = wgsl`column_scales[(${at} >> 2) * ${lanes} + lane_column]`;
      return wgsl`
        let ${at} = ${
        full === count
          ? group
          : wgsl`select(${group}, ${group} + ${
            full + RUN - count
          }, ${group} >= ${full})`
      };
        ${
        factorFrom(weight, {
          name,
          c,
          part,
          stored: weight.scaleOfByte!(
            wgsl`((${word} >> ((${at} & 3) * 8)) & 255)`,
          ),
        })
      }`;
    },
  };
}

/** The scales of a part of a sum. */
function scalesOfPart(
  o: BytesMatmul,
  { weight, columns }: Sums,
  inPart: number,
): LoadedScales | undefined {
  const { perScale, sumOf, scalesPerWord, hasOffsets } = weight;
  const { lanes } = teamsOf(o);
  const [c = 0] = columns;
  const parts = ["scales", "offsets"] as const;
  const used = hasOffsets ? parts : parts.slice(0, 1);
  // Workgroup memory has room for one of the two.
  const others = columns.length > 1 ||
    operandsOf(o).some(({ storeHeader }) => storeHeader);
  const sums = perScale / sumOf;
  const count = inPart / sums;
  // Two of them share a word, also if a part starts with the second.
  const inPairs = scalesPerWord === 2 && o.k / perScale % 2 === 0;
  const loaded = count + (inPairs ? count % 2 : 0);
  if (
    others || !Number.isInteger(count) || scalesPerWord > 2 ||
    used.length * loaded * lanes > SCALE_WORDS
  ) return undefined;
  const groupOf = (n: KernelText) => sums === 1 ? n : wgsl`${n} / ${sums}`;
  const first = groupOf(wgsl`first_sum`);
  const index = (group: KernelText) =>
    wgsl`(${group} - first_scale) * ${lanes} + lane_column`;
  const load = inPairs
    ? wgsl`
      for (var scale = first_scale; scale < first_scale + ${loaded}; scale += 2) {
        ${letTwoFactors(o, weight, { c, pair: wgsl`(scale / 2)` })}
        ${
      [0, 1].map((half) =>
        wgsl`part_scales[${
          index(wgsl`(scale + ${half})`)
        }] = ${`scales${half}`}[${c}];`
      )
    }
      }`
    : wgsl`
      for (var scale = first_scale; scale < first_scale + ${count}; scale++) {
        let n = scale * ${sums};
        ${letBlocks(weight, { columns, sum: wgsl`n` })}
        ${
      used.map((part) =>
        wgsl`
        ${letFactor(weight, { name: `one_${part}`, c, n: wgsl`n`, part })}
        ${`part_${part}`}[${index(wgsl`scale`)}] = ${`one_${part}`}[${c}];`
      )
    }
      }`;
  return {
    load: wgsl`
      ${
      used.map((part) =>
        wgsl`var<workgroup> ${`part_${part}`}: array<f32, ${loaded * lanes}>;`
      )
    }
      let first_scale = ${loaded > count ? wgsl`${first} / 2 * 2` : first};
      ${load}`,
    of: (part, { name, n }) =>
      wgsl`let ${name}[${c}] = ${`part_${part}`}[${index(groupOf(n))}];`,
  };
}

/** The first words of the blocks of a part of a sum. Undefined if they are too many. */
function headersOfPart(
  o: BytesMatmul,
  { weight, columns }: Pick<Sums, "weight" | "columns">,
  inPart: number,
): LoadedScales | undefined {
  const { lanes } = teamsOf(o);
  const { sums } = weight.block!;
  const [c = 0] = columns;
  if ((Math.ceil(inPart / sums) + 1) * HEADER_WORDS * lanes > SCALE_WORDS) {
    return undefined;
  }
  const header = (block: KernelText): Header => ({
    array: "part_header",
    index: (word) =>
      wgsl`((${block} - first_sum / ${sums}) * ${HEADER_WORDS} + ${word}) * ${lanes} + lane_column`,
  });
  return {
    load: wgsl`
      var<workgroup> part_header: array<u32, ${SCALE_WORDS}>;
      let end_block = (first_sum + ${inPart + sums - 1}) / ${sums};
      for (var block = first_sum / ${sums}; block < end_block; block++) {
        ${letBlocks(weight, { columns, sum: wgsl`(block * ${sums})` })}
        ${weight.storeHeader!(c, header(wgsl`block`))}
      }`,
    of: (part, at) =>
      letFactor(weight, {
        ...at,
        c,
        part,
        header: header(wgsl`${at.n} / ${sums}`),
      }),
  };
}
