/**
 * Page tables of KV caches: pages are allocated on demand, and shared by sequences with a common prefix, whose keys and
 * values have the same bits. Full pages outlive their sequences and windows until they are evicted, least recently used
 * first. With recurrent states, a sequence continues from a snapshot of its prefix.
 */

import type { HostTensor } from "../../runtime/mod.ts";
import { DataError } from "../../spec/errors.ts";
import { firstSeen, seenPages, STATES } from "../../spec/pages.ts";
import { sum } from "../../spec/sum.ts";
import type { PagesShape } from "./pages_shape.ts";
import { type Snapshotted, StateRows } from "./state_rows.ts";
import { type Page, UnusedPages } from "./unused_pages.ts";

/**
 * The positions of a page after the same tokens, shared by sequences, and its page in each group, unless freed or
 * evicted.
 */
interface Block extends Snapshotted {
  readonly id: number;
  /** Index in its sequences. */
  readonly at: number;
  /** Number of sequences that use it. */
  users: number;
  /** Its key for prefix sharing, once it is full. */
  key?: string;
  readonly pages: (Page<Block> | undefined)[];
}

/** A sequence: its tokens and their blocks. */
interface Sequence {
  readonly tokens: (number | undefined)[];
  readonly blocks: Block[];
  /** The pages of its blocks by group; pages outside the window are released. */
  readonly pages: (Page<Block> | undefined)[][];
  /** The positions after which snapshots are taken. */
  readonly snapshots: Set<number>;
}

/** The pages of the ranks that share a sequence. */
interface Pool {
  /** Unused pages of each of these ranks by group. */
  readonly unused: readonly (readonly UnusedPages<Block>[])[];
  /** Full blocks by their previous block and their tokens. */
  readonly full: Map<string, Block>;
}

/** The tokens of a step. */
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
  readonly #rows: StateRows | undefined;
  /** Pages of a sequence on each rank that shares it. */
  readonly #blocksOnRank: number;
  #blocks = 0;

  constructor(shape: PagesShape) {
    const { size, groups, blocks, owners, rows, sharing = 1 } = shape;
    this.size = size;
    this.#rows = rows === undefined ? undefined : new StateRows(rows, owners);
    this.#shape = shape;
    this.#tables = groups.map(() => new Int32Array(owners.length * blocks));
    this.#blocksOnRank = blocks / sharing;
    this.#pools = Array.from({ length: Math.max(...owners) + 1 }, () => ({
      unused: Array.from(
        { length: sharing },
        () => groups.map(({ count }) => new UnusedPages<Block>(count)),
      ),
      full: new Map(),
    }));
    this.#sequences = owners.map(() => ({
      tokens: [],
      blocks: [],
      pages: groups.map(() => []),
      snapshots: new Set(),
    }));
  }

  /**
   * The page tables, i32 [sequence, block], and that of the rows of states, by the name of the input. `copied`: later
   * calls do not change them. Default: false.
   */
  tensors({ copied = false } = {}): { readonly [input: string]: HostTensor } {
    const { groups, blocks, owners } = this.#shape;
    const shape = [owners.length, blocks];
    return {
      ...Object.fromEntries(
        groups.map(({ input }, group) => {
          const table = this.#tables[group]!;
          const data = copied ? table.slice() : table;
          return [input, { dtype: "i32", shape, data }] as const;
        }),
      ),
      ...this.#rows ? { [STATES.input]: this.#rows.tensor() } : {},
    };
  }

  /** Records that a step runs these tokens. */
  ran({ sequence, position }: StepTokens): void {
    this.#rows?.ran(sequence, position);
  }

  /** The group rank of a sequence. */
  owner(sequence: number): number {
    return this.#shape.owners[sequence]!;
  }

  /** Whether the ranks of a sequence have enough unused pages for this many further tokens of it. */
  hasRoom(sequence: number, tokens: number): boolean {
    const { groups } = this.#shape;
    const { unused: all } = this.#poolOf(sequence);
    const first = this.#sequences[sequence]!.blocks.length;
    const end = first + Math.ceil(tokens / this.size);
    // Those after the context count for the last rank.
    const endOf = (rank: number) =>
      rank < all.length ? Math.min(end, rank * this.#blocksOnRank) : end;
    return all.every((unused, rank) => {
      const needed = endOf(rank + 1) - Math.max(first, endOf(rank));
      return groups.every(({ seen }, group) =>
        unused[group]!.count >=
          Math.min(needed, seenPages(seen, this.size) ?? needed)
      );
    });
  }

  /** Pages of sequences on all ranks by group; shared pages count once. */
  get used(): number[] {
    return this.#shape.groups.map(({ count }, group) =>
      sum(
        this.#pools.flatMap(({ unused }) =>
          unused.map((ofRank) => count - ofRank[group]!.count)
        ),
      )
    );
  }

  /** Positions with tokens on all ranks; those of shared pages count once per sequence. */
  get held(): number {
    return sum(this.#sequences.map(({ tokens }) => tokens.length));
  }

  /**
   * Records the token at a position, undefined if only the device has it. Returns false if there is no unused page for
   * it.
   */
  assign(
    sequence: number,
    position: number,
    token: number | undefined,
  ): boolean {
    const { tokens, pages } = this.#sequences[sequence]!;
    const block = Math.floor(position / this.size);
    const isKnown = position < tokens.length && tokens[position] === token;
    if (isKnown && pages.every((of) => of[block])) return true;
    if (position < tokens.length) {
      const retained = this.keep(sequence, position);
      if (retained !== position) {
        throw new DataError(
          `Cannot run position ${position} of sequence ${sequence}: it has given back pages that the token there sees, or others read the page that it is in. Feed it again from position ${retained}, as 'keep' returns`,
        );
      }
    }
    if (!this.reserve(sequence, position)) return false;
    tokens[position] = token;
    if ((position + 1) % this.size === 0) this.#publish(sequence, block);
    return true;
  }

  /** Allocates the pages of a position. Returns false if there is no unused page. */
  reserve(sequence: number, position: number): boolean {
    const { blocks } = this.#sequences[sequence]!;
    const block = Math.floor(position / this.size);
    while (blocks.length <= block) {
      const unused = this.#unusedOf(sequence, blocks.length);
      if (unused.some(({ count }) => count === 0)) return false;
      const added: Block = {
        id: this.#blocks++,
        at: blocks.length,
        before: blocks.at(-1),
        users: 0,
        pages: [],
      };
      for (const group of unused.keys()) {
        const number = this.#take(sequence, group, added.at);
        added.pages.push({ number, block: added, users: 0 });
      }
      this.#add(sequence, added, () => true);
    }
    return true;
  }

  /** Records a token that only the device had. */
  know(sequence: number, position: number, token: number): void {
    const { tokens } = this.#sequences[sequence]!;
    if (position >= tokens.length) return;
    tokens[position] = token;
    const at = Math.floor(position / this.size);
    if (tokens.length >= (at + 1) * this.size) this.#publish(sequence, at);
  }

  /**
   * Shares the next blocks with other sequences that have filled them, while they contain the coming tokens and have
   * the pages visible to a following token. Returns the number of these positions whose tokens need not be fed. With
   * recurrent states, these are the positions up to a snapshot. The pages after it are shared, too, and their tokens
   * are fed for a snapshot at their end. "later": another sequence takes such a snapshot.
   */
  share(
    sequence: number,
    coming: Iterable<readonly number[]>,
  ): number | "later" {
    if (this.#shape.recurrent) return 0;
    const { tokens, blocks, snapshots } = this.#sequences[sequence]!;
    const rows = this.#rows;
    // Tokens of shared pages are fed.
    if (rows && rows.positions(sequence) < tokens.length) return 0;
    const { found, known } = this.#find(sequence, coming);
    if (found.length === 0) return 0;
    const last = rows
      ? found.findLastIndex(({ row }) => row !== undefined)
      : found.length - 1;
    if (found.some(({ takenBy }, i) => i > last && takenBy !== undefined)) {
      return "later";
    }
    const before = tokens.length;
    const limited = this.#shape.groups.some(({ seen }) =>
      seenPages(seen, this.size) !== undefined
    );
    const shared = limited ? found.slice(0, last + 1) : found;
    const first = this.#firstBlocks(
      (blocks.length + shared.length) * this.size,
    );
    for (const block of shared) {
      this.#add(sequence, block, (group, at) => at >= first[group]!);
    }
    for (const token of known.slice(0, shared.length * this.size)) {
      tokens.push(token);
    }
    const fed = (last + 1) * this.size;
    if (rows && last >= 0) rows.resume(sequence, before + fed, found[last]);
    if (tokens.length > before + fed) {
      snapshots.add(tokens.length);
      blocks.at(-1)!.takenBy = sequence;
    }
    return fed;
  }

  /**
   * Whether a snapshot is due before the token at a position of a sequence, whose last token in this series is at `end
   * - 1`: at the last border of pages, and where shared pages end. Then only a new step may contain that token.
   */
  isDue(sequence: number, position: number, end: number): boolean {
    if (!this.#rows) return false;
    const { blocks, snapshots } = this.#sequences[sequence]!;
    const border = end - 1 - (end - 1) % this.size;
    snapshots.add(border);
    if (!snapshots.has(position) || position % this.size > 0) return false;
    const block = blocks[position / this.size - 1];
    return block?.key !== undefined && block.row === undefined;
  }

  /** Takes the snapshot of a sequence that has run all tokens before a position. */
  snapshot(sequence: number, position: number): void {
    const { blocks, snapshots } = this.#sequences[sequence]!;
    snapshots.delete(position);
    this.#rows!.take(sequence, blocks[position / this.size - 1]!);
  }

  /**
   * Holds the recurrent state of a sequence, so that `keep` can return to it. Returns false if there is no row for it.
   */
  hold(sequence: number): boolean {
    return this.#rows?.hold(sequence) ?? true;
  }

  /** The next blocks that other sequences have filled with the coming tokens, and these tokens. */
  #find(
    sequence: number,
    coming: Iterable<readonly number[]>,
  ): { readonly found: readonly Block[]; readonly known: readonly number[] } {
    const { blocks } = this.#sequences[sequence]!;
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
      const isComplete = found.every(({ pages }, i) =>
        pages.every((page, group) => page || blocks.length + i < first[group]!)
      );
      if (isComplete) break;
    }
    return { found, known };
  }

  /** Releases the pages of a sequence that are not visible from a position on. */
  advance(sequence: number, position: number): void {
    const { pages } = this.#sequences[sequence]!;
    this.#firstBlocks(position).forEach((first, group) => {
      // Released pages are always the first ones.
      let block = Math.min(first, pages[group]!.length) - 1;
      while (block >= 0 && pages[group]![block]) {
        this.#releasePage(sequence, group, block--);
      }
    });
  }

  /** Releases pages that are visible neither to the tokens of a step nor to later ones. */
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
   * Retains this many positions of a sequence, fewer if they are in a shared page or have no state, or none if a page
   * visible to the next token was released. Returns their number.
   */
  keep(sequence: number, positions: number): number {
    const { tokens, blocks, pages, snapshots } = this.#sequences[sequence]!;
    const fullPages = Math.floor(positions / this.size);
    const shared = positions % this.size > 0 && blocks[fullPages]! &&
      blocks[fullPages].users > 1;
    const max = this.#resumable(
      sequence,
      Math.min(tokens.length, shared ? fullPages * this.size : positions),
    );
    const seen = this.#firstBlocks(max).every((first, group) =>
      pages[group]!.slice(first, Math.ceil(max / this.size))
        .every((page) => page)
    );
    const retained = seen ? max : 0;
    tokens.length = retained;
    snapshots.clear();
    for (const block of blocks) {
      if (block.takenBy === sequence) delete block.takenBy;
    }
    const isSaved = retained !== this.#rows?.positions(sequence);
    if (isSaved) {
      this.#rows?.resume(sequence, retained, blocks[retained / this.size - 1]);
    }
    while (blocks.length > Math.ceil(retained / this.size)) {
      for (const group of pages.keys()) {
        this.#releasePage(sequence, group, blocks.length - 1);
        pages[group]!.pop();
      }
      const block = blocks.pop()!;
      block.users--;
      this.#forget(sequence, block);
    }
    // Pages that are written again must not be found by their old contents.
    if (retained % this.size > 0) this.#unpublish(sequence, blocks.at(-1)!);
    return retained;
  }

  /** The largest number of positions, up to `max`, whose state is known. */
  #resumable(sequence: number, max: number): number {
    const positions = this.#rows?.positions(sequence);
    if (positions === undefined || positions === max) return max;
    const { blocks } = this.#sequences[sequence]!;
    const last = blocks.slice(0, Math.floor(max / this.size))
      .findLastIndex(({ row }) => row !== undefined);
    const held = this.#rows!.held(sequence);
    return Math.max((last + 1) * this.size, held <= max ? held : 0);
  }

  #poolOf(sequence: number): Pool {
    return this.#pools[this.owner(sequence)]!;
  }

  /** The unused pages, by group, of the rank with a block of a sequence. */
  #unusedOf(sequence: number, block: number): readonly UnusedPages<Block>[] {
    const { unused } = this.#poolOf(sequence);
    return unused[Math.floor(block / this.#blocksOnRank)]!;
  }

  /** Allocates an unused page for a block of a sequence, perhaps a cached one. */
  #take(sequence: number, group: number, at: number): number {
    const { number, evicted } = this.#unusedOf(sequence, at)[group]!.take();
    if (evicted) {
      evicted.block.pages[group] = undefined;
      this.#forget(sequence, evicted.block);
    }
    return number;
  }

  /** Unpublishes a block without users and pages. */
  #forget(sequence: number, block: Block): void {
    const isCached = block.pages.some((page) => page);
    if (block.users === 0 && !isCached) this.#unpublish(sequence, block);
  }

  /** By group, the first block visible to a token at a position. */
  #firstBlocks(position: number): number[] {
    return this.#shape.groups.map(({ seen }) =>
      Math.floor(firstSeen(seen, position) / this.size)
    );
  }

  /** Adds a block with its visible pages. */
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
      if (seen.users++ === 0) this.#unusedOf(sequence, at)[group]!.use(seen);
      this.#tables[group]![sequence * this.#shape.blocks + at] = seen.number;
    }
    block.users++;
    blocks.push(block);
  }

  /** Releases the page of a block, if the sequence has it: a page that can be shared is cached. */
  #releasePage(sequence: number, group: number, block: number): void {
    const { pages } = this.#sequences[sequence]!;
    const page = pages[group]![block];
    if (!page) return;
    pages[group]![block] = undefined;
    if (--page.users > 0) return;
    const unused = this.#unusedOf(sequence, block)[group]!;
    if (page.block.key !== undefined) return unused.cache(page);
    page.block.pages[group] = undefined;
    unused.free(page);
  }

  /** Publishes a full block for prefix sharing. */
  #publish(sequence: number, at: number): void {
    const { tokens, blocks, snapshots } = this.#sequences[sequence]!;
    const ids = tokens.slice(at * this.size, (at + 1) * this.size);
    const before = blocks[at - 1];
    const known = at === 0 || before?.key !== undefined;
    const { full } = this.#poolOf(sequence);
    const key = keyOf(before, ids);
    const there = full.get(key);
    const isComplete = there?.pages.every((page) => page);
    if (!known || ids.includes(undefined) || isComplete) return;
    // A block with freed pages is less useful for sharing.
    if (there?.users === 0) this.#unpublish(sequence, there);
    else delete there?.key;
    const block = blocks[at]!;
    block.key = key;
    full.set(key, block);
    if (this.#rows && snapshots.has((at + 1) * this.size)) {
      block.takenBy = sequence;
    }
  }

  /** Ends the sharing of a block, and frees its cached pages and its snapshot. */
  #unpublish(sequence: number, block: Block): void {
    this.#rows?.free(sequence, block);
    if (block.key === undefined) return;
    this.#poolOf(sequence).full.delete(block.key);
    delete block.key;
    block.pages.forEach((page, group) => {
      if (page?.users !== 0) return;
      block.pages[group] = undefined;
      this.#unusedOf(sequence, block.at)[group]!.free(page);
    });
  }
}

/** The key of a block: its contents and its previous block, so that keys identify prefixes. */
function keyOf(
  before: Block | undefined,
  tokens: readonly (number | undefined)[],
): string {
  return `${before?.id ?? ""}:${tokens.join()}`;
}
