/**
 * Attention whose ranks share the positions of sequences (`KeysAxis`): blocks of keys, and whether they are gathered.
 */

import { groupSizeOf } from "./mesh.ts";
import { EXACT } from "./numerics.ts";
import { firstSeen } from "./pages.ts";
import type { KeysAxis, Plan } from "./plan/plan.ts";

/** Blocks of keys of a sequence. */
export interface ContextBlocks {
  /** Mesh axes of the ranks that share them, and number of these ranks. */
  readonly over: readonly string[];
  readonly ranks: number;
  readonly perRank: number;
  readonly all: number;
}

/** The blocks of a sequence in the context of an axis. */
export function contextBlocks(
  { mesh, axes }: Plan,
  { context }: KeysAxis,
): ContextBlocks {
  const { over = [], size } = axes[context]!;
  const ranks = groupSizeOf(mesh, over);
  const all = size / EXACT.block;
  return { over, ranks, perRank: all / ranks, all };
}

/** The blocks of earlier keys that a token at a position sees: the first, and the end. */
export function earlierBlocks(
  axis: KeysAxis,
  position: number,
): readonly [first: number, end: number] {
  return [
    Math.floor(firstSeen(axis, position) / EXACT.block),
    Math.ceil(position / EXACT.block),
  ];
}

/**
 * Whether ranks gather so many blocks for so many tokens: the blocks have fewer bytes than the tokens' running sums.
 */
export function gathersKeys(
  { blockBytes, tokenBytes }: KeysAxis,
  blocks: number,
  tokens: number,
): boolean {
  return blocks * blockBytes < tokens * tokenBytes;
}
