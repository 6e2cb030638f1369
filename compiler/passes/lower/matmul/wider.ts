/** Matmuls of few rows on wide devices, with more lanes per workgroup. */

import type { Kernel } from "../../../../spec/kernel/tree.ts";
import { matmul } from "../../../kernels/matmul/matmul.ts";
import type { MatmulOptions } from "../../../kernels/matmul/options.ts";
import {
  blocksInRound,
  matmulShape,
  widerForFewRows,
} from "../../../tuning/lanes.ts";
import { narrowedRow, sumBlocks } from "../../../tuning/tile.ts";
import type { Lowering } from "../context.ts";
import type { LaunchForOne } from "../lowering.ts";

/** The kernel of a matmul of few rows with more lanes and an equal grid. Undefined: it is no faster. */
export function widerOf(
  { options: { maxLanes, maxShared } }: Lowering,
  options: MatmulOptions,
): Kernel | undefined {
  const wider = widerForFewRows(options, { maxLanes, words: maxShared / 4 });
  const name = `${options.name}_wide`;
  return wider && matmul({ ...options, ...wider, name });
}

/**
 * The kernel of a matmul for one row with few columns per workgroup and many lanes, if its launch is not merged.
 * Undefined: it is no faster.
 */
export function aloneOf(
  { options: { maxLanes } }: Lowering,
  options: MatmulOptions,
): LaunchForOne | undefined {
  const { tile, columns, weights } = options;
  const blocks = sumBlocks(options);
  if (!blocks) return undefined;
  const wider = narrowedRow({ ...tile, rows: 1 }, {
    stored: weights[0]!.stored,
    columns,
    blocks: blocks.count,
    maxLanes,
  });
  const one = { ...options, tile: wider };
  if (wider.lanes === tile.lanes || blocksInRound(one, 1) === 0) return;
  const { columns: each } = matmulShape(one);
  return { kernel: matmul(one), groups: Math.ceil(columns / each) };
}
