/**
 * One row of a matrix multiplication whose weights have k innermost: the lanes of a vector sum different blocks of k of
 * one column, so weights are read as one stream.
 */

import { add as plus, shared } from "../../../spec/kernel/build.ts";
import {
  declareEach,
  letRegister,
  type Register,
  setEach,
} from "../../../spec/kernel/registers.ts";
import { isHalf } from "../../../spec/dtype.ts";
import { addAsTree } from "../../../spec/numerics.ts";
import { range } from "../../../spec/range.ts";
import { teamsOf } from "../../tuning/lanes.ts";
import { equalBlocks } from "../../tuning/tile.ts";
import type { Expr, KernelText, Statements } from "../kernel.ts";
import { expr, local, wgsl } from "../kernel.ts";
import { columnsAndWeights } from "./columns.ts";
import type { Left } from "./left.ts";
import { decoded } from "./weights.ts";
import type { DecodedMatmul } from "./decoder.ts";
import { rightAt, termsOf } from "./right.ts";
import { SUM_BLOCK } from "../pieces/blocked_sum.ts";
import { sumTree } from "../pieces/sum_tree.ts";

/** Most words of the left operand in workgroup memory: a first-level cache has room for little more. */
const MAX_LEFT = 4096;

/** Fewest runs of blocks of a long column: vectors of 16 lanes read shorter ones as fast in several streams. */
const MIN_RUNS = 4;

/** Fewest runs of blocks of a column that is read as one stream. */
function minRuns(o: DecodedMatmul): number {
  const { lanes } = teamsOf(o);
  if ((o.tile.vector ?? lanes) >= lanes) return MIN_RUNS;
  return o.weights.every(({ stored }) => isHalf(stored)) ? 1 : Infinity;
}

/** Sums of one row. */
export interface RowSums {
  readonly left: Left;
  /** Adds the products of an iteration to the block of the sum `sum<weight>[0][0]`. */
  add(weight: number): Statements;
  /** Epilogue of the sums of a column. */
  finish(column: Expr): Statements;
}

/**
 * Whether the blocks of a column fill vectors, none of which ends within a segment. A workgroup has as many teams as a
 * team has lanes. Packed weights have other loops.
 */
export function sumsInLanes(o: DecodedMatmul): boolean {
  const { lanes, teams } = teamsOf(o);
  const blocks = equalBlocks(o);
  return blocks?.length === SUM_BLOCK && lanes === teams &&
    blocks.count % lanes === 0 &&
    blocks.count >= minRuns(o) * lanes &&
    lanes % blocks.ofSegment === 0 &&
    blocks.count * SUM_BLOCK <= MAX_LEFT &&
    o.decoders.every(({ scales }) => !scales);
}

/**
 * The row `first` by all columns of the workgroup. A team sums a run of blocks, one in each lane. Runs of all columns
 * follow each other, and teams process as many of them at a time as there are teams: then each lane of the first team
 * adds the block sums of a run in the order of the contract. Few block sums are in memory at a time, because they must
 * stay in the first-level cache while weights pass through it.
 *
 * `row_left` f32 [run of a column, index in a block, block] is the left operand, `row_sums` f32 [run, block] are block
 * sums, and `run_sums` f32 [weight, column, run of a column] the sums of runs.
 */
export function rowInLanes(
  o: DecodedMatmul,
  { left, add, finish }: RowSums,
): KernelText {
  const { count } = equalBlocks(o)!;
  const { lanes } = teamsOf(o);
  const ofColumn = count / lanes;
  const runs = o.tile.columns * count;
  const one = decoded({ ...o, tile: { ...o.tile, columns: 1 } });
  const terms = termsOf(o);
  const turns = SUM_BLOCK / terms.length;
  const leftAt = (run: KernelText, index: KernelText) =>
    wgsl`(${run} * ${SUM_BLOCK} + ${index}) * ${lanes} + in_run`;
  const first = wgsl`group.y * ${o.tile.columns * lanes}`;
  const blockSums = (weight: number) =>
    wgsl`
    let run = round * ${lanes} + team;
    let of_column = run % ${ofColumn};
    let block = of_column * ${lanes} + in_run;
    ${
      columnsAndWeights(one, {
        lanes: 1,
        part: wgsl`(${first} + run / ${ofColumn})`,
      })
    }
    ${declareEach([sumOf(weight)], "_block")}
    for (var turn = 0u; turn < ${turns}; turn++) {
      let k = block * ${turns} + turn;
      ${
      terms.map(({ prefix }, n) => {
        const index = wgsl`turn * ${terms.length} + ${n}`;
        return wgsl`
          let ${prefix}a[0] = row_left[${leftAt(wgsl`of_column`, index)}];`;
      })
    }
      ${rightAt(one, weight)}
      ${add(weight)}
    }
    row_sums[team * ${lanes} + in_run] = sum${weight}_block[0][0];`;
  return wgsl`
    var<workgroup> row_left: array<f32, ${count * SUM_BLOCK}>;
    var<workgroup> row_sums: array<f32, ${lanes * lanes}>;
    var<workgroup> run_sums: array<f32, ${o.weights.length * runs}>;
    ${left.prepare}
    let team = lane / ${lanes};
    let in_run = lane % ${lanes};
    for (var run_left = team; run_left < ${ofColumn}; run_left += ${lanes}) {
      for (var turn = 0u; turn < ${SUM_BLOCK}; turn++) {
        let at_k = (run_left * ${lanes} + in_run) * ${SUM_BLOCK} + turn;
        row_left[${leftAt(wgsl`run_left`, wgsl`turn`)}] = ${left.at(0, "at_k")};
      }
    }
    ${
    o.weights.map((_, weight) =>
      wgsl`
    for (var round = 0u; round < ${runs / lanes}; round++) {
      workgroupBarrier();
      ${blockSums(weight)}
      workgroupBarrier();
      if (lane < ${lanes}) {
        ${runSum(o, sumOf(weight))}
        run_sums[${
        weight * runs
      } + round * ${lanes} + lane] = sum${weight}[0][0];
      }
    }`
    )
  }
    workgroupBarrier();
    if (lane < ${lanes}) {
      for (var part = 0u; part < ${o.tile.columns}; part++) {
        let of_group = part * ${lanes} + lane;
        let of_lane = ${first} + of_group;
        ${
    o.weights.map((_, weight) => {
      const all = range(ofColumn).map((run) => {
        const at = expr`${weight * runs} + ${
          local("of_group", "u32")
        } * ${ofColumn} + ${run}`;
        return shared("run_sums", at);
      });
      return letRegister(`sum${weight}`, [0, 0], addAsTree(all, plus));
    })
  }
        ${finish(local("of_lane", "u32"))}
      }
    }`;
}

/** The only sum of a weight. */
function sumOf(weight: number): Register {
  return { base: `sum${weight}`, indices: [0, 0] };
}

/** Adds the block sums of a lane's run: those of a segment in order, segments as a tree. */
function runSum(o: DecodedMatmul, sum: Register): KernelText {
  const { ofSegment } = equalBlocks(o)!;
  const { lanes } = teamsOf(o);
  const segments = lanes / ofSegment;
  const part = { ...sum, base: `${sum.base}_part` };
  const tree = sumTree([part], segments);
  return wgsl`
    ${declareEach([sum])}
    ${tree.declare}
    for (var segment = 0u; segment < ${segments}; segment++) {
      ${declareEach([part])}
      for (var of_segment = 0u; of_segment < ${ofSegment}; of_segment++) {
        ${part.base}[0][0] += row_sums[lane * ${lanes} + segment * ${ofSegment} + of_segment];
      }
      ${
    tree.add(
      local("segment", "u32"),
      setEach([sum], "", (of) => of("_part")),
    )
  }
    }`;
}
