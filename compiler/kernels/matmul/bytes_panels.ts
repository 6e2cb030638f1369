/**
 * Matrix multiplication of bytes whose right operand is loaded once for all teams of a workgroup, as bytes in its
 * memory.
 */

import { Q8_BLOCK } from "../../../spec/weights/activations.ts";
import { SHARED_WORDS } from "../../../spec/kernel/make.ts";
import { f32 } from "../../../spec/kernel/build.ts";
import {
  declareEach,
  register,
  setEach,
} from "../../../spec/kernel/registers.ts";
import { teamsOf } from "../../tuning/lanes.ts";
import type { Hole, KernelText, Statements } from "../kernel.ts";
import { local, wgsl } from "../kernel.ts";
import {
  type BytesMatmul,
  type BytesOperand,
  codeWord,
  partsOf,
} from "./bytes_operands.ts";
import type { FactorPart } from "./bytes_decoder.ts";
import { letBlocks, letBytes, letFactor, operandsOf } from "./bytes_weights.ts";
import { HEADER_WORDS } from "../pieces/block.ts";
import { range } from "../../../spec/range.ts";
import { sumTree } from "../pieces/sum_tree.ts";

import {
  addSums,
  finishAll,
  registersOf,
  rowsFrom,
  SCALE_WORDS,
} from "./bytes_sums.ts";

/** Products of words that are added to a sum in one statement: devices add small ones in 16 bits. */
const PRODUCTS = 4;

/** Number of 32-element blocks per panel: an equal fraction of a part of the sums, or several parts. */
function blocksInPanel(o: BytesMatmul): number {
  const { lanes } = teamsOf(o);
  const operands = operandsOf(o);
  const words = operands.reduce(
    (n, { sumOf, hasOffsets }) =>
      n + 8 + Q8_BLOCK / sumOf * (hasOffsets ? 2 : 1),
    0,
  ) * o.tile.columns * lanes;
  const headers = hasHeaders(operands) ? HEADER_WORDS * lanes : 0;
  const blocks = o.k / Q8_BLOCK;
  const inPart = blocks / partsOf(o);
  const max = Math.floor((SHARED_WORDS - SCALE_WORDS) / (words + headers));
  for (let n = Math.min(max, blocks); n > 1; n--) {
    if (n % togetherOf(o) !== 0) continue;
    if (inPart % n === 0 || n % inPart === 0 && blocks % n === 0) return n;
  }
  return togetherOf(o);
}

/** Whether a weight has scales in the first words of blocks. */
function hasHeaders(operands: readonly BytesOperand[]): boolean {
  return operands.some(({ storeHeader }) => storeHeader !== undefined);
}

/** Blocks whose weights are loaded together. */
function togetherOf(o: BytesMatmul): number {
  return Math.max(...operandsOf(o).map(({ together }) => together));
}

/** Loads the bytes and factors of a team's blocks into panels: those of one block, or of two together. */
function fillBlock(
  o: BytesMatmul,
  weight: BytesOperand,
  c: number,
): KernelText {
  const { lanes } = teamsOf(o);
  const across = o.tile.columns * lanes;
  const { i, sumOf, words, parts, hasOffsets, together } = weight;
  const sums = Q8_BLOCK / sumOf;
  const used = (["scales", "offsets"] as const).slice(0, hasOffsets ? 2 : 1);
  const header = weight.storeHeader
    ? {
      array: "panel_header",
      index: (word: Hole) =>
        wgsl`(team * ${HEADER_WORDS} + ${word}) * ${lanes} + lane_column`,
    }
    : undefined;
  /** The index in an array with one element per column. */
  const panelIndex = (n: KernelText) =>
    wgsl`(${n}) * ${across} + (${c * lanes} + lane_column)`;
  const factors = (part: FactorPart, next: 0 | 1) => {
    const name = `${part}_s${i}${next === 0 ? "" : "_next"}`;
    const n = wgsl`(fill_sum + ${next})`;
    return wgsl`
      ${letFactor(weight, { name, c, n, next, part, header })}
      panel_${part === "scales" ? "factors" : "offsets"}${i}[${
      panelIndex(wgsl`block * ${sums} + (s + ${next})`)
    }] = ${name}[${c}];`;
  };
  return wgsl`
    for (var s = 0u; s < ${sums * togetherOf(o)}; s += ${together}) {
      let fill_sum = (first_block + block) * ${sums} + s;
      ${letBlocks(weight, { columns: [c], sum: wgsl`fill_sum` })}
      ${header && weight.storeHeader!(c, header)}
      let to_word = block * 8 + s * ${sumOf / 4};
      for (var word = 0u; word < ${words}; word++) {
        ${letBytes(weight, { c, sum: wgsl`fill_sum`, word: wgsl`word` })}
        ${
    range(parts).map((part) =>
      wgsl`panel${i}[${
        panelIndex(wgsl`to_word + ${codeWord(weight, wgsl`word`, part)}`)
      }] = bytes${i}_${part}[${c}];`
    )
  }
      }
      ${
    used.flatMap((part) =>
      range(together).map((next) => factors(part, next as 0 | 1))
    )
  }
    }`;
}

/** Computes the same number of rows for every team. All teams load the bytes of the columns into panels. */
export function rowsByPanels(o: BytesMatmul): KernelText {
  const { rows, columns } = o.tile;
  const { lanes, teams } = teamsOf(o);
  const [parts, inPanel, blocks] = [
    partsOf(o),
    blocksInPanel(o),
    o.k / Q8_BLOCK,
  ];
  const inPart = blocks / parts;
  const divides = inPanel % inPart === 0;
  const operands = operandsOf(o);
  const all = operands.map((weight) => ({
    rows,
    weight,
    columns: range(columns),
  }));
  const across = columns * lanes;
  const arrays = operands.map(({ i, sumOf, hasOffsets }) => {
    const sums = inPanel * Q8_BLOCK / sumOf * across;
    return wgsl`
      var<workgroup> panel${i}: array<u32, ${inPanel * 8 * across}>;
      var<workgroup> panel_factors${i}: array<f32, ${sums}>;
      ${
      hasOffsets &&
      wgsl`var<workgroup> panel_offsets${i}: array<f32, ${sums}>;`
    }`;
  });
  const together = togetherOf(o);
  const filled = operands.flatMap((weight) =>
    range(columns).map((c) => fillBlock(o, weight, c))
  );
  const totals = all.flatMap((sums) => registersOf("part", sums));
  const results = all.flatMap((sums) => registersOf("sum", sums));
  const ofBlock = all.map((sums) => {
    const { i, sumOf } = sums.weight;
    const count = Q8_BLOCK / sumOf;
    const parts = PRODUCTS;
    const words = sumOf / 4 / parts;
    const read = (array: string, name: string) =>
      wgsl`@unroll (c < ${columns}) {
        let ${name}[c] = ${array}[(block * ${count} + s) * ${across} + (c * ${lanes} + lane_column)];
      }`;
    const body = addSums(o, sums, {
      n: wgsl`(in_block * ${count} + s)`,
      stored: { together: 1, words, parts },
      codes: (word, part) => wgsl`(${word} * ${parts} + ${part})`,
      words: wgsl`
        let panel_word = block * 8 + s * ${sumOf / 4} + word * ${parts};
        ${
        range(parts).map((part) =>
          wgsl`@unroll (c < ${columns}) {
          let bytes${i}_${part}[c] = panel${i}[(panel_word + ${part}) * ${across} + (c * ${lanes} + lane_column)];
        }`
        )
      }`,
      factors: (part, { name }) =>
        read(
          `panel_${part === "scales" ? "factors" : "offsets"}${i}`,
          name,
        ),
    });
    return wgsl`for (var s = 0u; s < ${count}; s++) { ${body} }`;
  });
  const blocksFrom = (first: KernelText, n: number) =>
    wgsl`
      for (var block = ${first}; block < ${first} + ${n}; block++) {
        let in_block = first_block + block;
        ${ofBlock}
      }`;
  const done = totals.flatMap((total, at) =>
    setEach([results[at]!], "", () => register(total.base, total.indices))
  );
  const tree = sumTree(totals, parts);
  const reset = setEach(totals, "", () => f32(0));
  const ofParts = wgsl`
    for (var at_part = 0u; at_part < ${inPanel / inPart}; at_part++) {
      ${declareEach(totals)}
      let part_block = at_part * ${inPart};
      ${blocksFrom(wgsl`part_block`, inPart)}
      let part_number = first_block / ${inPart} + at_part;
      ${tree.add(local("part_number", "u32"), done)}
    }`;
  const ofShare = wgsl`
    if (first_block % ${inPart} == 0) {
      ${reset}
    }
    ${blocksFrom(wgsl`0u`, inPanel)}
    if ((first_block + ${inPanel}) % ${inPart} == 0) {
      let part_number = first_block / ${inPart};
      ${tree.add(local("part_number", "u32"), done)}
    }`;
  const turns = Math.ceil(inPanel / together / teams);
  const panel: Statements = wgsl`
    for (var turn = 0u; turn < ${turns}; turn++) {
      let block = (turn * ${teams} + team) * ${together};
      if (block < ${inPanel}) { ${filled} }
    }
    workgroupBarrier();
    if (team_first < end) { ${divides ? ofParts : ofShare} }
    workgroupBarrier();`;
  return wgsl`
    ${arrays}
    ${
    hasHeaders(operands) &&
    wgsl`var<workgroup> panel_header: array<u32, ${
      Math.min(teams, inPanel / together) * HEADER_WORDS * lanes
    }>;`
  }
    let team = lane / ${lanes};
    let team_first = first + team * ${rows};
    ${rowsFrom(o, rows)}
    ${declareEach(results)}
    ${tree.declare}
    ${!divides && declareEach(totals)}
    for (var first_block = 0u; first_block < ${blocks}; first_block += ${inPanel}) {
      ${panel}
    }
    if (team_first < end) { ${finishAll(o, rows)} }`;
}
