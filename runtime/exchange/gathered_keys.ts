/**
 * Attention over positions that ranks share: the blocks of earlier keys that each rank sends in a run, if these are
 * fewer bytes than the running sums of the tokens.
 */

import { EXACT } from "../../spec/numerics.ts";
import type { KeysAxis, Plan } from "../../spec/plan/plan.ts";
import {
  type ContextBlocks,
  contextBlocks,
  earlierBlocks,
  gathersKeys,
} from "../../spec/shared_keys.ts";
import { sum } from "../../spec/sum.ts";
import type { HostTensor } from "../host_tensor.ts";

/** A block of keys: its sequence, as numbered on the rank, and its number in the sequence. */
export type KeyBlock = readonly [sequence: number, block: number];

/** The keys that the ranks with the same tokens gather. */
export interface GatheredKeys {
  /** Blocks of earlier keys by rank along the positions. */
  readonly past: readonly (readonly KeyBlock[])[];
  /** All blocks in the order of gathered memory: earlier ones, then those with tokens of this run only. */
  readonly blocks: readonly KeyBlock[];
}

/** The tokens of a run by group rank over the mesh axes of their axis, and their sequences. */
export interface AttendingTokens {
  readonly parts: readonly Int32Array[];
  readonly inputs: { readonly [name: string]: HostTensor };
  /** The number of a sequence on its rank. */
  readonly numberOf: (sequence: number) => number;
}

/** The gathered keys by group rank of tokens. Undefined where sums are sent instead. */
export function gatheredKeys(
  plan: Plan,
  axis: KeysAxis,
  { parts, inputs, numberOf }: AttendingTokens,
): (GatheredKeys | undefined)[] {
  const { ranks, perRank } = contextBlocks(plan, axis);
  const [sequences, positions] = [axis.input, axis.position]
    .map((name) => inputs[name]?.data ?? []);
  return parts.map((tokens) => {
    const found = new Map<number, { first: number; end: number; n: number }>();
    for (const token of tokens) {
      const sequence = numberOf(sequences![token]!);
      const at = positions![token]!;
      const { first, end, n } = found.get(sequence) ??
        { first: at, end: at + 1, n: 0 };
      found.set(sequence, {
        first: Math.min(first, at),
        end: Math.max(end, at + 1),
        n: n + 1,
      });
    }
    const spans = Array.from(found, ([sequence, { first, end, n }]) => {
      const [seen, last] = earlierBlocks(axis, first);
      return { sequence, seen, last, end, isWhole: end - first === n };
    });
    // Keys between the tokens of a sequence would be missing.
    if (!spans.every(({ isWhole }) => isWhole)) return undefined;
    const earlier = sum(spans.map(({ seen, last }) => last - seen));
    if (!gathersKeys(axis, earlier, tokens.length)) return undefined;
    const past = Array.from({ length: ranks }, (): KeyBlock[] => []);
    const added: KeyBlock[] = [];
    for (const { sequence, seen, last, end } of spans) {
      for (let block = seen; block < last; block++) {
        past[Math.floor(block / perRank)]!.push([sequence, block]);
      }
      for (let block = last; block * EXACT.block < end; block++) {
        added.push([sequence, block]);
      }
    }
    return { past, blocks: [...past.flat(), ...added] };
  });
}

/** The items of an axis of `KeysAxis` by group rank. */
export function assignKeys(
  { part }: KeysAxis,
  tokens: readonly Int32Array[],
  { groups, ranks }: {
    readonly groups: readonly (GatheredKeys | undefined)[];
    /** Number of ranks along the positions. */
    readonly ranks: number;
  },
): Int32Array[] {
  if (part !== "past") {
    return tokens.map((items, at) =>
      (groups[at] !== undefined) === (part === "gathered")
        ? items
        : new Int32Array(0)
    );
  }
  return groups.flatMap((group) =>
    Array.from(
      { length: ranks },
      (_, rank) => new Int32Array(group ? group.past[rank]!.length : 0),
    )
  );
}

/** The blocks of earlier keys of a rank along the positions, as block indices in its cache. */
export function heldBlocks(
  { past }: GatheredKeys,
  rank: number,
  { perRank }: ContextBlocks,
): Uint32Array {
  return Uint32Array.from(
    past[rank]!,
    ([sequence, block]) => (sequence - rank) * perRank + block,
  );
}

/** The place of each block in gathered memory, by sequence and block. */
export function blockTable(
  { blocks }: GatheredKeys,
  sequences: number,
  { all }: ContextBlocks,
): Uint32Array {
  const table = new Uint32Array(sequences * all);
  blocks.forEach(([sequence, block], at) => table[sequence * all + block] = at);
  return table;
}
