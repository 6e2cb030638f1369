/**
 * Few rows of a matrix multiplication: teams of lanes sum different blocks of k, as in the sliced-K of CUTLASS, and
 * block sums are added in the order of the contract.
 */

import { add, f32 } from "../../../spec/kernel/build.ts";
import { addAsTree } from "../../../spec/numerics.ts";
import type { Expr, Hole, KernelText, Statements, Stmt } from "../kernel.ts";
import { expr, wgsl } from "../kernel.ts";
import { guarded, type Left, u } from "./left.ts";
import type { DecodedMatmul } from "./decoder.ts";
import type { MatmulOptions } from "./options.ts";
import { teamsOf } from "../../tuning/lanes.ts";
import type { SumBlocks } from "../../tuning/tile.ts";
import {
  declareEach,
  type Register,
  register,
  registers,
  setEach,
} from "../../../spec/kernel/registers.ts";
import { loadsAtOnce } from "../pieces/at_once.ts";
import { sumTree } from "../pieces/sum_tree.ts";

/** Sums of teams. */
export interface TeamSums {
  readonly rows: number;
  /** The variable with the first of the rows. */
  readonly first: string;
  /** The blocks of k, and the blocks per team and round. */
  readonly blocks: SumBlocks;
  readonly each: number;
  readonly left: Left;
  /** Precedes the products of a block that starts at index `start`. */
  before(start: KernelText): Statements;
  /** Consecutive indices of k in an iteration. */
  readonly terms: number;
  /** Adds the products at `count` indices from `k` to the blocks of the sums `sum<weight>[r][c]`. */
  add(count: number): Statements;
  /** Adds the products of the only block of a team, whose weights are loaded. Default: `before` and `add`. */
  readonly loaded?: Statements | undefined;
  finish(result: MatmulResult): Stmt;
}

/** A result: the sum of each weight at a row and column. */
export interface MatmulResult {
  readonly row: Expr;
  readonly column: Expr;
  readonly sums: readonly Expr[];
}

/**
 * In a round every team sums its blocks and stores the sums in `block_sums` f32 [block, sum, lane of a team]. Each lane
 * then adds the block sums of its results, in the order of blocks, and the segments as a tree. Results are distributed
 * over the teams: cell[j] is the number of a team's j-th result.
 */
export function sumsOfTeams(
  o: DecodedMatmul & Pick<MatmulOptions, "adjacent">,
  { rows, first, blocks, each, left, before, terms, add, loaded, finish }:
    TeamSums,
): KernelText {
  const { columns } = o.tile;
  const { lanes, teams } = teamsOf(o);
  const cells = rows * columns;
  const sums = o.weights.length * cells;
  const { adjacent = false } = o;
  const apart = adjacent ? 2 : 1;
  const ofTeam = Math.ceil(cells / apart / teams);
  const inRound = teams * each;
  const { length } = blocks;
  const single = blocks.count <= inRound;
  const even = blocks.count % inRound === 0;
  // The round's first block.
  const start = single ? wgsl`0u` : wgsl`round_block`;
  const blockSumAt = (sum: Hole, block: Hole = wgsl`block`) =>
    wgsl`(${block} * ${sums} + ${sum}) * ${lanes} + lane_column`;
  const ofResult = adjacent ? [0, 1] : o.weights.map((_, i) => i);
  const totals = ofResult.map((i) => ({ base: `total${i}`, indices: ["j"] }));
  const sumOf = (i: number) =>
    adjacent ? wgsl`(cell[j] * 2 + ${i})` : wgsl`${i * cells} + cell[j]`;
  // Of one segment, in every round.
  const together = loadsAtOnce(
    blocks.ofSegment,
    (n) => single || inRound % n === 0 && blocks.count % n === 0,
  );
  const loadBlocks = ofResult.map((i) =>
    wgsl`
      let from_block${i} = ${blockSumAt(sumOf(i))};
      @unroll (n < ${together}) {
        let of_block${i}[n] = block_sums[from_block${i} + n * ${sums * lanes}];
      }`
  );
  const addBlocks = ofResult.map((i) =>
    wgsl`@unroll (n < ${together}) { total${i}[j] += of_block${i}[n]; }`
  );
  const added = addedBlocks(totals, blocks, {
    number: wgsl`${start} + block`,
    together,
    load: loadBlocks,
    add: addBlocks,
  });
  /** For each result of a lane; the last ones may not suffice for all teams. */
  const eachResult = (body: Statements) =>
    wgsl`
      @unroll (j < ${ofTeam}) {
        ${
      guarded(
        ofTeam * teams * apart > cells,
        wgsl`cell[j] < ${cells / apart}`,
        body,
      )
    }
      }`;
  const oneBlock = loaded
    ? storedSums(
      o,
      { rows, add: loaded },
      (sum) => blockSumAt(sum, wgsl`team`),
    )
    : sumsOfBlock(o, { rows, blocks, before, terms, add }, blockSumAt);
  const inThisRound = single
    ? blocks.count
    : even
    ? inRound
    : wgsl`min(${inRound}, ${blocks.count} - ${start})`;
  const blockSums = wgsl`
    ${
    // No lane may write sums of this round while others add those of the last one.
    left.before?.(wgsl`${start} * ${length}`) ??
      (!single && wgsl`workgroupBarrier();`)}
    ${
    loaded ? guarded(!even, wgsl`team < ${blocks.count}`, oneBlock) : wgsl`
    for (var turn = 0u; turn < ${each}; turn++) {
      let block = turn * ${teams} + team;
      let block_at = ${start} + block;
      ${guarded(!even, wgsl`block_at < ${blocks.count}`, oneBlock)}
    }`
  }
    workgroupBarrier();`;
  const round = wgsl`
    ${blockSums}
    ${
    eachResult(wgsl`
      for (var block = 0u; block < ${inThisRound}; block += ${together}) {
        ${added.addBlocks}
      }`)
  }`;
  const allRounds = single ? round : wgsl`
    for (var round_block = 0u; round_block < ${blocks.count}; round_block += ${inRound}) { ${round} }`;
  const results = wgsl`
    let column_of[j] = ${
    adjacent ? wgsl`cell[j] % ${columns / 2} * 2` : wgsl`cell[j] % ${columns}`
  };
    ${[finish({
    row: expr`${u(first)} + ${u("cell[j]")} / ${columns / apart}`,
    column: columnAt(o, u("column_of[j]")),
    sums: totals.map(({ base, indices }) => register(base, indices)),
  })]}`;
  const tasks = cells / apart * (blocks.count / blocks.ofSegment);
  const inSegments = single && blocks.count > blocks.ofSegment &&
    tasks <= teams;
  return wgsl`
    var<workgroup> block_sums: array<f32, ${
    (single ? blocks.count : inRound) * sums * lanes
  }>;
    let lane_column = lane % ${lanes};
    ${
    inSegments
      ? wgsl`
    ${blockSums}
    ${
        sumsOfSegments(totals, blocks, {
          results: cells / apart,
          together,
          indexOf: (i, block) => blockSumAt(sumOf(i), block),
          add: wgsl`${loadBlocks} ${addBlocks}`,
          finish: results,
        })
      }`
      : wgsl`
    @unroll (j < ${ofTeam}) {
      let cell[j] = team + j * ${teams};
      ${added.declare}
    }
    ${allRounds}
    ${eachResult(results)}`
  }`;
}

/**
 * Adds the block sums of so few results that every segment of each has a team: the lanes of a team add the blocks of a
 * segment, then those of each result its segments.
 */
function sumsOfSegments(
  totals: readonly Register[],
  { count, ofSegment }: SumBlocks,
  { results, together, indexOf, add, finish }: {
    readonly results: number;
    /** Blocks that are loaded and added together. */
    readonly together: number;
    /** The index in `block_sums` of a block of total i of `cell[j]`. */
    indexOf(i: number, block: KernelText): KernelText;
    /** Adds the block sums from `block` to the totals. */
    readonly add: KernelText;
    readonly finish: KernelText;
  },
): KernelText {
  const segments = count / ofSegment;
  const each = (body: Statements) => wgsl`@unroll (j < 1) { ${body} }`;
  // Only this lane reads the block sums of its segment, so it replaces the first of them.
  return wgsl`
    if (team < ${results * segments}) { ${
    each(wgsl`
      let cell[j] = team % ${results};
      let first_block = team / ${results} * ${ofSegment};
      ${declareEach(totals)}
      for (var nth = 0u; nth < ${ofSegment}; nth += ${together}) {
        let block = first_block + nth;
        ${add}
      }
      ${
      totals.map(({ base, indices }, i) =>
        wgsl`block_sums[${indexOf(i, wgsl`first_block`)}] = ${
          register(base, indices)
        };`
      )
    }`)
  } }
    workgroupBarrier();
    if (team < ${results}) { ${
    each(wgsl`
      let cell[j] = team;
      ${
      totals.map(({ base }, i) =>
        wgsl`
      @unroll (n < ${segments}) {
        let of_segment${i}[n] = block_sums[${
          indexOf(i, wgsl`n * ${ofSegment}`)
        }];
      }
      let ${base}[j] = ${treeOf(`of_segment${i}`, segments)};`
      )
    }
      ${finish}`)
  } }`;
}

/**
 * Sums block `block_at` of k for some rows, and stores the sums of a lane at `blockSumAt` in `block_sums`. `addBlock` adds
 * the products of an entire block from index `k` without a loop; blocks for which the condition holds are the last of
 * their segments.
 */
export function sumsOfBlock(
  o: DecodedMatmul,
  { rows, blocks, before, terms, add, addBlock }:
    & Pick<TeamSums, "rows" | "blocks" | "before" | "terms" | "add">
    & { readonly addBlock?: ((isLast: KernelText) => Statements) | undefined },
  blockSumAt: (sum: Hole) => KernelText,
): KernelText {
  const { length, last } = blocks;
  const products = (start: KernelText, { iterations, each }: {
    readonly iterations: Hole;
    readonly each: number;
  }) =>
    wgsl`
    for (var part = 0u; part < ${iterations}; part++) {
      let k = ${start} + part * ${each};
      ${add(each)}
    }`;
  const ofBlock = (count: number) => {
    const rest = count % terms;
    const whole = count - rest;
    return wgsl`
      ${
      whole > 0 &&
      products(wgsl`block_start`, { iterations: whole / terms, each: terms })
    }
      ${
      rest > 0 &&
      products(wgsl`block_start + ${whole}`, { iterations: 1, each: rest })
    }`;
  };
  const isLast = wgsl`block_at % ${blocks.ofSegment} == ${
    blocks.ofSegment - 1
  }`;
  const ofSegment = (blocks.ofSegment - 1) * length + last;
  const body = addBlock
    ? wgsl`
    let k = block_start;
    ${last < length && wgsl`let is_last = ${isLast};`}
    ${addBlock(wgsl`is_last`)}`
    : last === length
    ? ofBlock(length)
    : last % terms === 0 && length % terms === 0
    // Blocks of one warp have one loop.
    ? products(wgsl`block_start`, {
      iterations: wgsl`select(${length / terms}u, ${last / terms}, ${isLast})`,
      each: terms,
    })
    : wgsl`if (${isLast}) { ${ofBlock(last)} } else { ${ofBlock(length)} }`;
  return wgsl`
    let block_start = ${
    last === length
      ? wgsl`block_at * ${length}`
      : wgsl`block_at / ${blocks.ofSegment} * ${ofSegment} + block_at % ${blocks.ofSegment} * ${length}`
  };
    ${before(wgsl`block_start`)}
    ${storedSums(o, { rows, add: body }, blockSumAt)}`;
}

/** Sums a block of k for some rows with the products that `add` adds, and stores the sums of a lane. */
function storedSums(
  o: DecodedMatmul,
  { rows, add }: { readonly rows: number; readonly add: Statements },
  blockSumAt: (sum: Hole) => KernelText,
): KernelText {
  const { columns } = o.tile;
  const cells = rows * columns;
  const eachSum = (text: (weight: number) => KernelText) =>
    o.weights.map((_, i) =>
      wgsl`@unroll (r < ${rows}, c < ${columns}) { ${text(i)} }`
    );
  return wgsl`
    ${eachSum((i) => wgsl`var sum${i}_block[r][c] = 0.0;`)}
    ${add}
    ${
    eachSum((i) => {
      const sum = wgsl`${i * cells} + r * ${columns} + c`;
      return wgsl`block_sums[${blockSumAt(sum)}] = sum${i}_block[r][c];`;
    })
  }`;
}

/** The registers `base[0]` to `base[count - 1]`, added as a balanced tree. */
export function treeOf(base: string, count: number): Expr {
  const values = registers(base, count)
    .map(({ base, indices }) => register(base, indices));
  return addAsTree(values, add);
}

/** Adds the blocks of a result in one lane: the blocks of a segment in order, segments as a tree. */
export function addedBlocks(
  totals: readonly Register[],
  { count, ofSegment }: SumBlocks,
  { number, together, load, add }: {
    /** The number of the first of some blocks. */
    readonly number: KernelText;
    /** Blocks that are loaded and added together, all of one segment. */
    readonly together: number;
    readonly load: readonly KernelText[];
    /** Adds them to each total. */
    readonly add: readonly KernelText[];
  },
): { readonly declare: Statements; readonly addBlocks: KernelText } {
  const segments = count / ofSegment;
  const zero = declareEach(totals);
  if (segments === 1) return { declare: zero, addBlocks: wgsl`${load} ${add}` };
  const tree = sumTree(totals, segments);
  const several = ofSegment > together;
  const begins = wgsl`block_number % ${ofSegment} == 0`;
  const ends = wgsl`(block_number + ${together}) % ${ofSegment} == 0`;
  const restart = setEach(totals, "", () => f32(0));
  return {
    declare: [...zero, ...tree.declare],
    addBlocks: wgsl`
      ${load}
      let block_number = ${number};
      ${guarded(several, begins, restart)}
      ${add}
      ${
      guarded(
        several,
        ends,
        tree.add(expr`${u("block_number")} / ${ofSegment}`),
      )
    }`,
  };
}

/** The result column of a lane's column whose number is dynamic. */
export function columnAt(o: DecodedMatmul, c: Expr): Expr {
  const { unit } = o;
  const { lanes } = teamsOf(o);
  return expr`(${
    u("lane_unit")
  } + ${c} / ${unit} * ${lanes}) * ${unit} + ${c} % ${unit}`;
}
