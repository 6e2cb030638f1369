/** Matmuls of one row on wide devices whose launch is not merged with another. */

import { matmul } from "../../../kernels/matmul/matmul.ts";
import type { MatmulOptions } from "../../../kernels/matmul/options.ts";
import { blocksInRound, matmulShape } from "../../../tuning/lanes.ts";
import { narrowedRow, sumBlocks } from "../../../tuning/tile.ts";
import type { Lowering } from "../context.ts";
import type { LaunchAlone } from "../lowering.ts";

/** The kernel of a matmul for one row that has few columns: its workgroups have more lanes. Undefined: it is no faster. */
export function aloneOf(
  { options: { maxLanes } }: Lowering,
  options: MatmulOptions,
): LaunchAlone | undefined {
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
