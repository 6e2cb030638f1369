/**
 * Few rows of a matrix multiplication: teams of lanes sum different blocks of k, as in the sliced-K of CUTLASS, and block
 * sums are added in the contract's order.
 */

import {
  type Hole,
  type KernelText,
  type Statements,
  wgsl,
} from "../../spec/kernel/text.ts";
import type { SharedArray } from "../../spec/kernel/tree.ts";
import { guarded, type Left } from "./matmul_left.ts";
import { unitOf } from "./matmul_right.ts";
import {
  type EqualBlocks,
  type MatmulOptions,
  teamsOf,
} from "./matmul_tile.ts";
import { sumTree } from "./pieces/sum_tree.ts";
import { range } from "./pieces/numbers.ts";

/** What teams sum. */
export interface TeamSums {
  readonly rows: number;
  /** The blocks of k, and those of each team in a round. */
  readonly blocks: EqualBlocks;
  readonly each: number;
  readonly left: Left;
  /** Names of the sums, weight by weight, and what adds to their blocks at an index k. */
  readonly totals: readonly string[];
  readonly add: Statements;
  /** Uses the results at a place. */
  finish(
    at: { readonly row: KernelText; readonly column: KernelText },
    sums: readonly string[],
  ): KernelText;
}

/**
 * In a round every team sums its blocks and leaves the sums in `block_sums` f32 [block, sum, lane of a team]; then each lane
 * adds those of its results, in the order of blocks, and the sums of segments as a tree. Results are shared out among the
 * teams one by one.
 */
export function sumsOfTeams(
  o: MatmulOptions,
  { rows, blocks, each, left, totals, add, finish }: TeamSums,
): { readonly body: KernelText; readonly shared: readonly SharedArray[] } {
  const { columns } = o.tile;
  const { lanes, teams } = teamsOf(o);
  const cells = rows * columns;
  const inRound = teams * each;
  const length = blocks.count * blocks.length;
  const single = blocks.count <= inRound;
  const even = blocks.count % inRound === 0;
  const start = single ? wgsl`0u` : wgsl`k_round`;
  const place = (sum: Hole) =>
    wgsl`(block * ${totals.length} + ${sum}) * ${lanes} + lane_column`;

  const own = range(Math.ceil(cells / teams)).map((j) => {
    const sums = o.weights.map((_, i) => `sum${i}_${j}`);
    return {
      cell: `cell${j}`,
      sums,
      ...addedBlocks(sums, blocks, {
        number: wgsl`${start} / ${blocks.length} + block`,
        add: sums.map((sum, i) =>
          wgsl`${sum} += block_sums[${place(wgsl`${i * cells} + cell${j}`)}];`
        ),
      }),
      // The last ones are not enough for all teams.
      guard: (body: Statements) =>
        guarded((j + 1) * teams > cells, wgsl`cell${j} < ${cells}`, body),
    };
  });
  const oneBlock = wgsl`
    ${totals.map((total) => wgsl`var ${total}_block = 0.0;`)}
    for (var k = block_start; k < block_start + ${blocks.length}; k++) {
      ${add}
    }
    ${
    totals.map((total, i) => wgsl`block_sums[${place(i)}] = ${total}_block;`)
  }`;
  const inThisRound = single
    ? blocks.count
    : even
    ? inRound
    : wgsl`min(${inRound}, (${length} - ${start}) / ${blocks.length})`;
  const round = wgsl`
    ${
    // Nobody may write sums of this round while others add those of the last one.
    left.before?.(start) ?? (!single && wgsl`workgroupBarrier();`)}
    for (var turn = 0u; turn < ${each}; turn++) {
      let block = turn * ${teams} + team;
      let block_start = ${start} + block * ${blocks.length};
      ${guarded(!even, wgsl`block_start < ${length}`, oneBlock)}
    }
    workgroupBarrier();
    ${
    own.map(({ addBlock, guard }) =>
      wgsl`${
        guard(wgsl`
          for (var block = 0u; block < ${inThisRound}; block++) {
            ${addBlock}
          }`)
      }`
    )
  }`;
  return {
    shared: [{
      name: "block_sums",
      type: "f32",
      length: inRound * totals.length * lanes,
    }],
    body: wgsl`
      let lane_column = lane % ${lanes};
      ${
      own.map(({ cell, declare }, j) =>
        wgsl`
          let ${cell} = team + ${j * teams};
          ${declare}`
      )
    }
      ${
      single ? round : wgsl`
        for (var k_round = 0u; k_round < ${length}; k_round += ${
        inRound * blocks.length
      }) {
          ${round}
        }`
    }
      ${
      own.map(({ cell, sums, guard }, j) => {
        const row = wgsl`first + ${cell} / ${columns}`;
        const column = columnAt(o, `column_of${j}`);
        return wgsl`${
          guard(wgsl`
            let column_of${j} = ${cell} % ${columns};
            ${finish({ row, column }, sums)}`)
        }`;
      })
    }`,
  };
}

/** How one lane adds the blocks of a result: those of a segment in order, segments as a tree. */
function addedBlocks(
  totals: readonly string[],
  { count, ofSegment }: EqualBlocks,
  { number, add }: {
    /** The number of a block among all. */
    readonly number: KernelText;
    /** Adds a block to each total. */
    readonly add: readonly KernelText[];
  },
): { readonly declare: KernelText; readonly addBlock: KernelText } {
  const segments = count / ofSegment;
  const zero = totals.map((total) => wgsl`var ${total} = 0.0;`);
  if (segments === 1) {
    return { declare: wgsl`${zero}`, addBlock: wgsl`${add}` };
  }
  const tree = sumTree(totals, segments);
  const begins = wgsl`block_number % ${ofSegment} == 0`;
  const ends = wgsl`(block_number + 1) % ${ofSegment} == 0`;
  const restart = totals.map((total) => wgsl`${total} = 0.0;`);
  return {
    declare: wgsl`${zero} ${tree.declare}`,
    addBlock: wgsl`
      let block_number = ${number};
      ${guarded(ofSegment > 1, begins, restart)}
      ${add}
      ${
      guarded(ofSegment > 1, ends, tree.add(wgsl`block_number / ${ofSegment}`))
    }`,
  };
}

/** The result's column for a column of a lane, whose number is known at run time. */
function columnAt(o: MatmulOptions, c: string): KernelText {
  const unit = unitOf(o);
  const { lanes } = teamsOf(o);
  return wgsl`(lane_unit + ${c} / ${unit} * ${lanes}) * ${unit} + ${c} % ${unit}`;
}
