/** Matrix multiplication of bytes whose right operand is loaded once for all teams of a workgroup, as bytes in its memory. */

import { Q8_BLOCK } from "../../spec/activations.ts";
import { SHARED_WORDS } from "../../spec/kernel/make.ts";
import { f32 } from "../../spec/kernel/build.ts";
import { declareEach, register, setEach } from "../../spec/kernel/registers.ts";
import { teamsOf } from "../tuning/lanes.ts";
import type { KernelText, Statements } from "./kernel.ts";
import { local, wgsl } from "./kernel.ts";
import {
  type BytesMatmul,
  factorAt,
  operandsOf,
  wordOf,
} from "./matmul_bytes_operands.ts";
import { range } from "./pieces/numbers.ts";
import { sumTree } from "./pieces/sum_tree.ts";

import {
  addSum,
  finishAll,
  partsOf,
  registersOf,
  rowsFrom,
  SCALE_WORDS,
} from "./matmul_bytes_sums.ts";

/** Number of 32-element blocks per panel: an equal fraction of a part of the sums, or several parts. */
function blocksInPanel(o: BytesMatmul): number {
  const { lanes } = teamsOf(o);
  const words = operandsOf(o).reduce(
    (n, { sumOf, offsets }) =>
      n + 8 + Q8_BLOCK / sumOf * (offsets === undefined ? 1 : 2),
    0,
  ) * o.tile.columns * lanes;
  const blocks = o.k / Q8_BLOCK;
  const inPart = blocks / partsOf(o);
  const max = Math.floor((SHARED_WORDS - SCALE_WORDS) / words);
  for (let n = Math.min(max, blocks); n > 1; n--) {
    if (inPart % n === 0 || n % inPart === 0 && blocks % n === 0) return n;
  }
  return 1;
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
  const whole = inPanel % inPart === 0;
  const operands = operandsOf(o);
  const all = operands.map((weight) => ({
    rows,
    weight,
    columns: range(columns),
  }));
  const across = columns * lanes;
  /** The index in an array with one element per column. */
  const panelIndex = (n: KernelText, c: number) =>
    wgsl`(${n}) * ${across} + (${c * lanes} + lane_column)`;
  const arrays = operands.map(({ i, sumOf, offsets }) => {
    const sums = inPanel * Q8_BLOCK / sumOf * across;
    return wgsl`
      var<workgroup> panel${i}: array<u32, ${inPanel * 8 * across}>;
      var<workgroup> panel_factors${i}: array<f32, ${sums}>;
      ${
      offsets !== undefined &&
      wgsl`var<workgroup> panel_offsets${i}: array<f32, ${sums}>;`
    }`;
  });
  const filled = operands.map((weight) => {
    const { i, perWord, sumOf, bytes, offsets } = weight;
    const inWord = perWord / 4;
    const sums = Q8_BLOCK / sumOf;
    return range(columns).map((c) =>
      wgsl`
        let first_word${i}_${c} = (first_block + block) * ${Q8_BLOCK / perWord};
        for (var word = 0u; word < ${Q8_BLOCK / perWord}; word++) {
          let stored${i} = ${
        wordOf(o, weight, { c, n: wgsl`(first_word${i}_${c} + word)` })
      };
          let to_word = block * 8 + word * ${inWord};
          ${
        bytes.of(wgsl`stored${i}`).map((text, part) =>
          wgsl`panel${i}[${panelIndex(wgsl`to_word + ${part}`, c)}] = ${text};`
        )
      }
        }
        for (var s = 0u; s < ${sums}; s++) {
          ${
        (["scales", "offsets"] as const).map((part) =>
          part === "offsets" && offsets === undefined ? wgsl`` : wgsl`
          ${
            factorAt(o, weight, {
              name: `${part}_s${i}`,
              c,
              n: wgsl`((first_block + block) * ${sums} + s)`,
              part,
            })
          }
          panel_${part === "scales" ? "factors" : "offsets"}${i}[${
            panelIndex(wgsl`block * ${sums} + s`, c)
          }] = ${part}_s${i}[${c}];`
        )
      }
        }`
    );
  });
  const totals = all.flatMap((sums) => registersOf("part", sums));
  const results = all.flatMap((sums) => registersOf("sum", sums));
  const ofBlock = all.map((sums) => {
    const { i, sumOf, perWord, offsets } = sums.weight;
    const count = Q8_BLOCK / sumOf;
    const inWord = perWord / 4;
    const read = (array: string, name: string) =>
      wgsl`@unroll (c < ${columns}) {
        let ${name}[c] = ${array}[(block * ${count} + s) * ${across} + (c * ${lanes} + lane_column)];
      }`;
    const body = addSum(o, sums, {
      n: wgsl`(in_block * ${count} + s)`,
      words: wgsl`
        let panel_word = block * 8 + s * ${sumOf / 4} + word * ${inWord};
        ${
        range(inWord).map((part) =>
          wgsl`@unroll (c < ${columns}) {
          let bytes${i}_${part}[c] = panel${i}[(panel_word + ${part}) * ${across} + (c * ${lanes} + lane_column)];
        }`
        )
      }`,
      factors: read(`panel_factors${i}`, `factor${i}`),
      offsets: offsets === undefined
        ? undefined
        : read(`panel_offsets${i}`, `offset${i}`),
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
  const turns = Math.ceil(inPanel / teams);
  const panel: Statements = wgsl`
    for (var turn = 0u; turn < ${turns}; turn++) {
      let block = turn * ${teams} + team;
      if (block < ${inPanel}) { ${filled.flat()} }
    }
    workgroupBarrier();
    if (team_first < end) { ${whole ? ofParts : ofShare} }
    workgroupBarrier();`;
  return wgsl`
    ${arrays}
    let team = lane / ${lanes};
    let team_first = first + team * ${rows};
    ${rowsFrom(o, rows)}
    ${declareEach(results)}
    ${tree.declare}
    ${!whole && declareEach(totals)}
    for (var first_block = 0u; first_block < ${blocks}; first_block += ${inPanel}) {
      ${panel}
    }
    if (team_first < end) { ${finishAll(o, rows)} }`;
}
