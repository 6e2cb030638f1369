/**
 * Page tables of KV caches: pages are allocated on demand, freed at the end of a sequence or after its window, and
 * shared by sequences with a common prefix, whose keys and values have the same bits.
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
  /** The input with their page table. */
  readonly input: string;
  readonly seen: Seen;
  /** Pages per rank. */
  readonly count: number;
}

/** The pages of a plan's caches. */
export interface PagesShape {
  /** Positions per page. */
  readonly size: number;
  readonly groups: readonly PageGroup[];
  /** Maximum pages per sequence. */
  readonly blocks: number;
  /** For each sequence, the group rank with its pages. */
  readonly owners: readonly number[];
  /** Whether sequences have recurrent states, so that prefixes cannot be shared. */
  readonly recurrent?: boolean;
}

/**
 * Whether sequences have states besides caches: matrices of recurrences, inputs of convolutions. They contain only the
 * last token.
 */
export function isRecurrent({ buffers }: Plan): boolean {
  return Object.values(buffers).some(({ kind, axes }) =>
    kind === "state" &&
    !axes.some(({ axis }) => axis === "context" || axis === WITHIN)
  );
}

/** The pages of a decoder's plan. Undefined if caches are not paged. */
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

/** A page of a group, and its number of sequences. */
interface Page {
  readonly number: number;
  users: number;
}

/** The positions of a page after the same tokens, shared by sequences, and its page in each group, if not yet freed. */
interface Block {
  readonly id: number;
  /** Number of sequences that use it. */
  users: number;
  /** Its key for prefix sharing, once it is full. */
  key?: string;
  readonly pages: (Page | undefined)[];
}

/** A sequence: its tokens and their blocks. */
interface Sequence {
  readonly tokens: (number | undefined)[];
  readonly blocks: Block[];
  /** The pages of its blocks by group; pages outside the window are freed. */
  readonly pages: (Page | undefined)[][];
}

/** The pages of one group rank. */
interface Pool {
  /** Free pages by group, the next one last. */
  readonly free: readonly number[][];
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

  /** The page tables: i32 [sequence, block], by the name of the input. */
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

  /** The group rank of a sequence. */
  owner(sequence: number): number {
    return this.#shape.owners[sequence]!;
  }

  /** Whether the rank of a sequence has enough free pages for this many tokens of it. */
  hasRoom(sequence: number, tokens: number): boolean {
    const { free } = this.#poolOf(sequence);
    const all = Math.ceil(tokens / this.size);
    return this.#shape.groups.every(({ seen }, group) =>
      free[group]!.length >= Math.min(all, seenPages(seen, this.size) ?? all)
    );
  }

  /** Used pages on all ranks by group; shared pages count once. */
  get used(): number[] {
    return this.#shape.groups.map(({ count }, group) =>
      sum(this.#pools.map(({ free }) => count - free[group]!.length))
    );
  }

  /** Positions with tokens on all ranks; those of shared pages count once per sequence. */
  get held(): number {
    return sum(this.#sequences.map(({ tokens }) => tokens.length));
  }

  /** Records the token at a position and allocates its pages. Returns false if there is no free page. */
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
   * Shares the next blocks with other sequences that have filled them, while they contain the coming tokens and have
   * the pages visible to a following token. Returns the number of these positions.
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

  /** Frees the pages of a sequence that no token from a position on sees. */
  advance(sequence: number, position: number): void {
    const { pages } = this.#sequences[sequence]!;
    this.#firstBlocks(position).forEach((first, group) => {
      // Freed pages are always the first ones.
      let block = Math.min(first, pages[group]!.length) - 1;
      while (block >= 0 && pages[group]![block]) {
        this.#releasePage(sequence, group, block--);
      }
    });
  }

  /** Frees pages that neither a token of a step nor a later one sees. */
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
   * Retains this many positions of a sequence, fewer if they are in a shared page, or none if a page visible to the
   * next token was freed. Returns their number.
   */
  keep(sequence: number, positions: number): number {
    const { tokens, blocks, pages } = this.#sequences[sequence]!;
    const whole = Math.floor(positions / this.size);
    const shared = positions % this.size > 0 && blocks[whole]! &&
      blocks[whole].users > 1;
    const max = Math.min(
      tokens.length,
      shared ? whole * this.size : positions,
    );
    const seen = this.#firstBlocks(max).every((first, group) =>
      pages[group]!.slice(first, Math.ceil(max / this.size))
        .every((page) => page)
    );
    const retained = seen ? max : 0;
    tokens.length = retained;
    const pool = this.#poolOf(sequence);
    while (blocks.length > Math.ceil(retained / this.size)) {
      for (const group of pages.keys()) {
        this.#releasePage(sequence, group, blocks.length - 1);
        pages[group]!.pop();
      }
      const block = blocks.pop()!;
      if (--block.users === 0) unpublish(pool, block);
    }
    // Pages that are written again must not be found by their old contents.
    if (retained % this.size > 0) unpublish(pool, blocks.at(-1)!);
    return retained;
  }

  #poolOf(sequence: number): Pool {
    return this.#pools[this.owner(sequence)]!;
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
      seen.users++;
      this.#tables[group]![sequence * this.#shape.blocks + at] = seen.number;
    }
    block.users++;
    blocks.push(block);
  }

  /** Frees the page of a block, if the sequence has it. */
  #releasePage(sequence: number, group: number, block: number): void {
    const { blocks, pages } = this.#sequences[sequence]!;
    const page = pages[group]![block];
    if (!page) return;
    pages[group]![block] = undefined;
    if (--page.users > 0) return;
    blocks[block]!.pages[group] = undefined;
    this.#poolOf(sequence).free[group]!.push(page.number);
  }

  /** Publishes a full block for prefix sharing. */
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
    // A block with freed pages is less useful for sharing.
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

/** The key of a block: its contents and its previous block, so that keys identify prefixes. */
function keyOf(
  before: Block | undefined,
  tokens: readonly (number | undefined)[],
): string {
  return `${before?.id ?? ""}:${tokens.join()}`;
}

/**
 * Allocates the pages of all tokens of a step, and frees pages that none of them sees. Throws DataError if there are
 * too few.
 */
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
