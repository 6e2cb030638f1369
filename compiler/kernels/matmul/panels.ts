/**
 * Matrix multiplication whose right operand is loaded once for all teams of a workgroup: a panel of some blocks of k by
 * the workgroup's columns, as f32 in workgroup memory (the packing of Goto and van de Geijn, "Anatomy of
 * high-performance matrix multiplication", 2008). Vector lanes are columns, so weights stored along k are transposed
 * once for all rows.
 */

import { invariant } from "../../../spec/errors.ts";
import { add as plus, f32 } from "../../../spec/kernel/build.ts";
import type { KernelText, Statements } from "../kernel.ts";
import { expr, local, wgsl } from "../kernel.ts";
import { type DecodedMatmul, RUN_TURN } from "./decoder.ts";
import { allSums, beforeRun } from "./products.ts";
import { indicesOfTerms, rightAt, termsOf } from "./right.ts";
import { scalesOfBlock } from "./scales.ts";
import { blocksInPanel, teamsOf } from "../../tuning/lanes.ts";
import { equalBlocks } from "../../tuning/tile.ts";
import {
  declareEach,
  letRegister,
  type Register,
  register,
  setEach,
} from "../../../spec/kernel/registers.ts";
import { sumTree } from "../pieces/sum_tree.ts";

/** Sums of teams: `sum<weight>[r][c]` of the rows from `team_first` below `end`. */
export interface PanelSums {
  readonly sums: readonly Register[];
  /**
   * Adds the products at index `at_k` to the blocks of the sums `sum<weight>_block[r][c]`, after the declaration of
   * `b<weight>[c]`.
   */
  add(right: KernelText): KernelText;
  /** Epilogue of the sums. */
  readonly finish: Statements;
}

/** Each `team` loads a block of a panel and waits for all. `panel` f32 [k, weight, column, lane]. */
export function sumsByPanels(
  o: DecodedMatmul,
  { sums, add, finish }: PanelSums,
): KernelText {
  const blocks = equalBlocks(o);
  const inPanel = blocksInPanel(o);
  invariant(blocks && inPanel > 0, "panels are of equal blocks");
  const { length, count, ofSegment } = blocks;
  const { columns } = o.tile;
  const { lanes } = teamsOf(o);
  const row = o.weights.length * columns * lanes;
  const step = inPanel * length;
  const segments = count / ofSegment;
  const divides = inPanel % ofSegment === 0;
  const ofLength = length * ofSegment;
  // The partial sums of a segment, which outlive a panel only if it contains no complete segment.
  const tree = sumTree(
    sums.map(({ base, indices }) => ({ base: `${base}_part`, indices })),
    segments,
  );
  const panelIndex = (i: number, k: KernelText) => {
    const ofWeight = i * columns * lanes;
    return wgsl`(${k}) * ${row} + (${ofWeight} + c * ${lanes} + lane_column)`;
  };
  const terms = termsOf(o);
  const first = wgsl`k_start + team * ${length}`;
  const { runLength: run } = o;
  const stored = terms.flatMap(({ prefix }, n) =>
    o.weights.map((_, i) => {
      const turn = wgsl`${run ? RUN_TURN : "turn"} * ${terms.length} + ${n}`;
      const k = wgsl`team * ${length} + ${run ? wgsl`run + ${turn}` : turn}`;
      const to = panelIndex(i, k);
      return wgsl`
        @unroll (c < ${columns}) { panel[${to}] = ${prefix}b${i}[c]; }`;
    })
  );
  const turns = (length: number, counter: string, k: KernelText) =>
    wgsl`
    for (var ${counter} = 0u; ${counter} < ${
      length / terms.length
    }; ${counter}++) {
      let k = ${k};
      ${indicesOfTerms(o)}
      ${o.weights.flatMap((_, i) => rightAt(o, i))}
      ${stored}
    }`;
  const runs = (each: number) =>
    wgsl`
    for (var run = 0u; run < ${length}; run += ${each}) {
      ${beforeRun(o, wgsl`(${first} + run)`, allSums(o))}
      ${
      turns(
        each,
        RUN_TURN,
        wgsl`first_k + run / ${terms.length} + ${RUN_TURN}`,
      )
    }
    }`;
  const loaded = wgsl`
    let first_k = ${
    terms.length === 1 ? first : wgsl`(${first}) >> ${Math.log2(terms.length)}u`
  };
    ${o.weights.flatMap((_, i) => scalesOfBlock(o, i, { start: first }))}
    ${run ? runs(run) : turns(length, "turn", wgsl`first_k + turn`)}`;
  const right = o.weights.map((_, i) =>
    wgsl`
      @unroll (c < ${columns}) {
        let b${i}[c] = panel[${panelIndex(i, wgsl`at_turn`)}];
      }`
  );
  const oneBlock = wgsl`
    ${declareEach(sums, "_block")}
    let block_turn = block * ${length};
    let block_k = k_start + block_turn;
    for (var turn = 0u; turn < ${length}; turn++) {
      let at_k = block_k + turn;
      let at_turn = block_turn + turn;
      ${add(wgsl`${right}`)}
    }
    ${setEach(sums, "_part", (of) => plus(of("_part"), of("_block")))}`;
  const blocksFrom = (first: KernelText, n: number) =>
    n === 1 ? wgsl`let block = ${first}; ${oneBlock}` : wgsl`
      for (var block = ${first}; block < ${first} + ${n}; block++) {
        ${oneBlock}
      }`;
  const results = wgsl`
    ${
    sums.map(({ base, indices }) =>
      letRegister(base, indices, register(`${base}_part`, indices))
    )
  }
    ${finish}`;
  const ofPart = wgsl`
    if (k_start % ${ofLength} == 0) {
      ${setEach(sums, "_part", () => f32(0))}
    }
    ${blocksFrom(wgsl`0u`, inPanel)}
    if ((k_start + ${step}) % ${ofLength} == 0) {
      ${tree.add(expr`${local("k_start", "u32")} / ${ofLength}`, results)}
    }`;
  const ofSegments = wgsl`
    for (var segment = 0u; segment < ${inPanel / ofSegment}; segment++) {
      ${declareEach(sums, "_part")}
      let first_block = segment * ${ofSegment};
      ${blocksFrom(wgsl`first_block`, ofSegment)}
      let at_segment = k_start / ${ofLength} + segment;
      ${tree.add(local("at_segment", "u32"), results)}
    }`;
  const panel = wgsl`
    ${inPanel < count && wgsl`workgroupBarrier();`}
    if (team < ${inPanel}) { ${loaded} }
    workgroupBarrier();
    if (team_first < end) { ${divides ? ofSegments : ofPart} }`;
  return wgsl`
    var<workgroup> panel: array<f32, ${step * row}>;
    let lane_column = lane % ${lanes};
    ${tree.declare}
    ${!divides && declareEach(sums, "_part")}
    ${
    // A panel of all of k is one stretch between barriers, which keeps sums in registers.
    inPanel === count
      ? wgsl`
    let k_start = 0u;
    ${panel}`
      : wgsl`
    for (var k_start = 0u; k_start < ${length * count}; k_start += ${step}) {
      ${panel}
    }`}`;
}
