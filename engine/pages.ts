/**
 * In which pages of the caches sequences are: taken as they grow, given back as they end or as nothing sees them any more,
 * and shared by sequences that begin with the same tokens, whose keys and values have the same bits.
 */

import type { HostTensor } from "../runtime/mod.ts";
import { DataError } from "../spec/errors.ts";
import { groupSizeOf } from "../spec/mesh.ts";
import {
  firstSeen,
  type Seen,
  seenPages,
  seenThrough,
  WITHIN,
} from "../spec/pages.ts";
import type { Plan, Program } from "../spec/plan/plan.ts";
import { sum } from "../spec/sum.ts";
import { tableIds } from "../spec/table.ts";

/** The pages of layers that see the same positions. */
export interface PageGroup {
  /** The input that is their table. */
  readonly input: string;
  readonly seen: Seen;
  /** Pages of a rank. */
  readonly count: number;
}

/** The pages of a plan's caches. */
export interface PagesShape {
  /** Positions of a page. */
  readonly size: number;
  readonly groups: readonly PageGroup[];
  /** Pages that a sequence can have. */
  readonly blocks: number;
  /** For each sequence, the group rank whose pages it has. */
  readonly owners: readonly number[];
  /** Sequences have states of their last token too, so that none goes on from pages of another. */
  readonly recurrent?: boolean;
}

/** Whether sequences have states besides caches: matrices of recurrences, inputs of convolutions. They hold the last token only. */
export function isRecurrent({ buffers }: Plan): boolean {
  return Object.values(buffers).some(({ kind, axes }) =>
    kind === "state" &&
    !axes.some(({ axis }) => axis === "context" || axis === WITHIN)
  );
}

/** The pages of a decoder's plan; undefined where every sequence has room for itself. */
export function pagesShape(
  plan: Plan,
  { inputs }: Program,
): PagesShape | undefined {
  const ports = Object.entries(inputs).flatMap(([input, port]) => {
    const seen = seenThrough(input);
    return seen ? [{ input, seen, port }] : [];
  });
  if (ports.length === 0) return undefined;
  const [sequence, block] = ports[0]!.port.axes.map((name) =>
    plan.axes[name]!
  ) as [Plan["axes"][string], Plan["axes"][string]];
  const { size, table, over = [] } = sequence;
  const owners = new Array<number>(size).fill(0);
  if (table) {
    const groupSize = groupSizeOf(plan.mesh, over);
    for (let at = 0; at < groupSize; at++) {
      for (const id of tableIds({ size, table }, groupSize, at)) {
        owners[id] = at;
      }
    }
  }
  return {
    size: plan.axes[WITHIN]!.size,
    groups: ports.map(({ input, seen, port }) => ({
      input,
      seen,
      count: port.below!,
    })),
    blocks: block.size,
    owners,
    recurrent: isRecurrent(plan),
  };
}

/** A page of a group, and how many sequences have it. */
interface Page {
  readonly number: number;
  users: number;
}

/** Positions of a page behind the same tokens, which sequences share, and by group the page that they are in, if any has it still. */
interface Block {
  readonly id: number;
  /** Sequences that have it. */
  users: number;
  /** Under which it is found by others, once it is full. */
  key?: string;
  readonly pages: (Page | undefined)[];
}

/** A sequence: its tokens, and the blocks that they are in. */
interface Sequence {
  readonly tokens: (number | undefined)[];
  readonly blocks: Block[];
  /** By group, which pages it has of its blocks; those that it does not see any more are given back. */
  readonly pages: (Page | undefined)[][];
}

/** The pages of one group rank. */
interface Pool {
  /** By group, pages that no sequence has, the next one last. */
  readonly free: readonly number[][];
  /** Full blocks by the block before them and their tokens. */
  readonly full: Map<string, Block>;
}

/** Which tokens a step has. */
interface StepTokens {
  readonly sequence: Int32Array;
  readonly position: Int32Array;
}

/** The pages of all sequences. */
export class PageTable {
  readonly size: number;
  readonly #shape: PagesShape;
  readonly #tables: readonly Int32Array[];
  readonly #pools: readonly Pool[];
  readonly #sequences: readonly Sequence[];
  #blocks = 0;

  constructor(shape: PagesShape) {
    const { size, groups, blocks, owners } = shape;
    this.size = size;
    this.#shape = shape;
    this.#tables = groups.map(() => new Int32Array(owners.length * blocks));
    this.#pools = Array.from({ length: Math.max(...owners) + 1 }, () => ({
      free: groups.map(({ count }) =>
        Array.from({ length: count }, (_, i) => count - 1 - i)
      ),
      full: new Map(),
    }));
    this.#sequences = owners.map(() => ({
      tokens: [],
      blocks: [],
      pages: groups.map(() => []),
    }));
  }

  /** In which page each block of a sequence is: i32 [sequence, block], by the name of the input. */
  tensors(): { readonly [input: string]: HostTensor } {
    const { groups, blocks, owners } = this.#shape;
    const shape = [owners.length, blocks];
    return Object.fromEntries(
      groups.map(({ input }, group) => [
        input,
        { dtype: "i32", shape, data: this.#tables[group]! } as const,
      ]),
    );
  }

  /** The group rank that has a sequence. */
  owner(sequence: number): number {
    return this.#shape.owners[sequence]!;
  }

  /** Whether the rank of a sequence has pages left for so many tokens of it. */
  hasRoom(sequence: number, tokens: number): boolean {
    const { free } = this.#poolOf(sequence);
    const all = Math.ceil(tokens / this.size);
    return this.#shape.groups.every(({ seen }, group) =>
      free[group]!.length >= Math.min(all, seenPages(seen, this.size) ?? all)
    );
  }

  /** By group, pages that are in use on all ranks; one that several sequences share is one. */
  get used(): number[] {
    return this.#shape.groups.map(({ count }, group) =>
      sum(this.#pools.map(({ free }) => count - free[group]!.length))
    );
  }

  /** Positions that sequences have tokens at, on all ranks; those of a page that several share are counted for each. */
  get held(): number {
    return sum(this.#sequences.map(({ tokens }) => tokens.length));
  }

  /** Note the token at a position, and take the pages that it is in. Returns false where one is missing. */
  place(sequence: number, position: number, token: number): boolean {
    const { tokens, blocks, pages } = this.#sequences[sequence]!;
    const block = Math.floor(position / this.size);
    if (
      tokens[position] === token &&
      pages.every((of) => of[block])
    ) return true;
    if (position < tokens.length) {
      const retained = this.keep(sequence, position);
      if (retained !== position) {
        throw new DataError(
          `Cannot run position ${position} of sequence ${sequence}: it has given back pages that the token there sees, or others read the page that it is in. Feed it again from position ${retained}, as 'keep' returns`,
        );
      }
    }
    const { free } = this.#poolOf(sequence);
    while (blocks.length <= block) {
      if (free.some((numbers) => numbers.length === 0)) return false;
      this.#add(sequence, {
        id: this.#blocks++,
        users: 0,
        pages: free.map((numbers) => ({ number: numbers.pop()!, users: 0 })),
      }, () => true);
    }
    tokens[position] = token;
    if ((position + 1) % this.size === 0) this.#publish(sequence, block);
    return true;
  }

  /**
   * Have the next blocks from other sequences that have filled them, as many as hold the tokens of blocks that are to come
   * and have the pages that a token behind them sees. Returns how many positions these are.
   */
  share(sequence: number, coming: Iterable<readonly number[]>): number {
    if (this.#shape.recurrent) return 0;
    const { tokens, blocks } = this.#sequences[sequence]!;
    const { full } = this.#poolOf(sequence);
    const found: Block[] = [];
    const known: number[] = [];
    for (const next of coming) {
      const block = full.get(keyOf(found.at(-1) ?? blocks.at(-1), next));
      if (!block) break;
      found.push(block);
      for (const token of next) known.push(token);
    }
    for (; found.length > 0; found.pop()) {
      const first = this.#firstBlocks(
        (blocks.length + found.length) * this.size,
      );
      const isSeen = (group: number, block: number) => block >= first[group]!;
      const whole = found.every(({ pages }, i) =>
        pages.every((page, group) => page || !isSeen(group, blocks.length + i))
      );
      if (!whole) continue;
      for (const block of found) this.#add(sequence, block, isSeen);
      const shared = known.slice(0, found.length * this.size);
      for (const token of shared) tokens.push(token);
      return shared.length;
    }
    return 0;
  }

  /** Give back pages of a sequence that none of its tokens from a position on sees. */
  advance(sequence: number, position: number): void {
    const { pages } = this.#sequences[sequence]!;
    this.#firstBlocks(position).forEach((first, group) => {
      // What is given back are always the first ones.
      let block = Math.min(first, pages[group]!.length) - 1;
      while (block >= 0 && pages[group]![block]) {
        this.#giveBack(sequence, group, block--);
      }
    });
  }

  /** Give back pages that no token of a step sees, nor one after it. */
  advanceAll({ sequence, position }: StepTokens): void {
    const first = new Map(
      this.#sequences.map(({ tokens }, s) => [s, tokens.length]),
    );
    sequence.forEach((s, i) =>
      first.set(s, Math.min(first.get(s) ?? Infinity, position[i]!))
    );
    for (const [s, at] of first) this.advance(s, at);
  }

  /**
   * Keep so many positions of a sequence, or as many less as are in a page that others have too, or none where it has given
   * back what the next token would see. Returns how many.
   */
  keep(sequence: number, positions: number): number {
    const { tokens, blocks, pages } = this.#sequences[sequence]!;
    const whole = Math.floor(positions / this.size);
    const shared = positions % this.size > 0 && blocks[whole]! &&
      blocks[whole].users > 1;
    const most = Math.min(
      tokens.length,
      shared ? whole * this.size : positions,
    );
    const seen = this.#firstBlocks(most).every((first, group) =>
      pages[group]!.slice(first, Math.ceil(most / this.size))
        .every((page) => page)
    );
    const retained = seen ? most : 0;
    tokens.length = retained;
    const pool = this.#poolOf(sequence);
    while (blocks.length > Math.ceil(retained / this.size)) {
      for (const group of pages.keys()) {
        this.#giveBack(sequence, group, blocks.length - 1);
        pages[group]!.pop();
      }
      const block = blocks.pop()!;
      if (--block.users === 0) unpublish(pool, block);
    }
    // What is written into a page again is not found by what it held.
    if (retained % this.size > 0) unpublish(pool, blocks.at(-1)!);
    return retained;
  }

  #poolOf(sequence: number): Pool {
    return this.#pools[this.owner(sequence)]!;
  }

  /** By group, the first block that a token at a position sees. */
  #firstBlocks(position: number): number[] {
    return this.#shape.groups.map(({ seen }) =>
      Math.floor(firstSeen(seen, position) / this.size)
    );
  }

  /** Have a block, and those of its pages that are seen. */
  #add(
    sequence: number,
    block: Block,
    isSeen: (group: number, block: number) => boolean,
  ): void {
    const { blocks, pages } = this.#sequences[sequence]!;
    const at = blocks.length;
    for (const [group, page] of block.pages.entries()) {
      const seen = isSeen(group, at) ? page : undefined;
      pages[group]!.push(seen);
      if (!seen) continue;
      seen.users++;
      this.#tables[group]![sequence * this.#shape.blocks + at] = seen.number;
    }
    block.users++;
    blocks.push(block);
  }

  /** Give back the page of a block, if a sequence has it. */
  #giveBack(sequence: number, group: number, block: number): void {
    const { blocks, pages } = this.#sequences[sequence]!;
    const page = pages[group]![block];
    if (!page) return;
    pages[group]![block] = undefined;
    if (--page.users > 0) return;
    blocks[block]!.pages[group] = undefined;
    this.#poolOf(sequence).free[group]!.push(page.number);
  }

  /** Let others find a block that is full now. */
  #publish(sequence: number, at: number): void {
    const { tokens, blocks } = this.#sequences[sequence]!;
    const ids = tokens.slice(at * this.size, (at + 1) * this.size);
    const before = blocks[at - 1];
    const known = at === 0 || before?.key !== undefined;
    const { full } = this.#poolOf(sequence);
    const key = keyOf(before, ids);
    const there = full.get(key);
    const whole = there?.pages.every((page) => page);
    if (!known || ids.includes(undefined) || whole) return;
    // One that has given pages back is of less use to others.
    if (there) delete there.key;
    const block = blocks[at]!;
    block.key = key;
    full.set(key, block);
  }
}

function unpublish({ full }: Pool, block: Block): void {
  if (block.key === undefined) return;
  full.delete(block.key);
  delete block.key;
}

/** A block is what it holds behind the block before it: who has it has that one too, so that ids tell blocks apart. */
function keyOf(
  before: Block | undefined,
  tokens: readonly (number | undefined)[],
): string {
  return `${before?.id ?? ""}:${tokens.join()}`;
}

/** Take the pages of all tokens of a step, and give back those that none of them sees. Throws DataError where there are too few. */
export function placeTokens(
  pages: PageTable,
  { ids, ...of }: StepTokens & { readonly ids: Int32Array },
): void {
  const { sequence, position } = of;
  pages.advanceAll(of);
  for (let i = 0; i < ids.length; i++) {
    if (pages.place(sequence[i]!, position[i]!, ids[i]!)) continue;
    throw new DataError(
      `Cannot run position ${position[i]!} of sequence ${sequence[
        i
      ]!}: other sequences have all pages. Run fewer at a time, or compile for more pages`,
    );
  }
}
