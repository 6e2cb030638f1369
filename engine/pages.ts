/**
 * In which pages of the caches sequences are: taken as they grow, given back as they end, and shared by sequences that begin
 * with the same tokens, whose keys and values have the same bits.
 */

import type { HostTensor } from "../runtime/mod.ts";
import { DataError, invariant } from "../spec/errors.ts";
import { groupSizeOf } from "../spec/mesh.ts";
import { PAGES_INPUT, WITHIN } from "../spec/pages.ts";
import type { Plan, Program } from "../spec/plan.ts";
import { sum } from "../spec/sum.ts";
import { tableIds } from "../spec/table.ts";

/** The pages of a plan's caches. */
export interface PagesShape {
  /** Positions of a page. */
  readonly size: number;
  /** Pages of a rank. */
  readonly count: number;
  /** Pages that a sequence can have. */
  readonly blocks: number;
  /** For each sequence, the group rank whose pages it has. */
  readonly owners: readonly number[];
}

/** The pages of a decoder's plan; undefined where every sequence has room for itself. */
export function pagesShape(
  plan: Plan,
  { inputs }: Program,
): PagesShape | undefined {
  const port = inputs[PAGES_INPUT];
  if (!port) return undefined;
  const [sequence, block] = port.axes.map((name) => plan.axes[name]!) as [
    ...[Plan["axes"][string], Plan["axes"][string]],
  ];
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
    ...{ count: port.below!, blocks: block.size, owners },
  };
}

/** A page and what is known of it. */
interface Page {
  readonly number: number;
  /** Sequences that have it. */
  users: number;
  /** Under which it is found by others, once it is full. */
  key?: string;
}

/** The pages of one group rank. */
interface Pool {
  /** Pages that no sequence has, the next one last. */
  readonly free: number[];
  /** Full pages by the page before them and their tokens. */
  readonly full: Map<string, Page>;
}

/** The pages of all sequences. */
export class PageTable {
  readonly size: number;
  readonly #table: Int32Array;
  readonly #shape: PagesShape;
  readonly #pools: readonly Pool[];
  readonly #pages: Page[][];
  readonly #tokens: (number | undefined)[][];

  constructor(shape: PagesShape) {
    const { size, count, blocks, owners } = shape;
    this.size = size;
    this.#table = new Int32Array(owners.length * blocks);
    this.#shape = shape;
    this.#pools = Array.from({ length: Math.max(...owners) + 1 }, () => ({
      free: Array.from({ length: count }, (_, i) => count - 1 - i),
      full: new Map(),
    }));
    this.#pages = owners.map(() => []);
    this.#tokens = owners.map(() => []);
  }

  /** In which page each block of a sequence is: i32 [sequence, block]. */
  tensor(): HostTensor {
    const { blocks, owners } = this.#shape;
    return {
      dtype: "i32",
      shape: [owners.length, blocks],
      data: this.#table,
    };
  }

  /** The group rank that has a sequence. */
  owner(sequence: number): number {
    return this.#shape.owners[sequence]!;
  }

  /** Pages that the rank of a sequence has left. */
  free(sequence: number): number {
    return this.#poolOf(sequence).free.length;
  }

  /** Pages that are in use, on all ranks; one that several sequences share is one. */
  get used(): number {
    return sum(
      this.#pools.map(({ free }) => this.#shape.count - free.length),
    );
  }

  /** Positions that sequences have tokens at, on all ranks; those of a page that several share are counted for each. */
  get held(): number {
    return sum(this.#tokens.map(({ length }) => length));
  }

  /** Note the token at a position, and take the page that it is in. Returns false where no page is left. */
  place(sequence: number, position: number, token: number): boolean {
    const tokens = this.#tokens[sequence]!;
    if (tokens[position] === token) return true;
    if (position < tokens.length) {
      const kept = this.keep(sequence, position);
      invariant(kept === position, "a token is written into a shared page");
    }
    const pages = this.#pages[sequence]!;
    const block = Math.floor(position / this.size);
    while (pages.length <= block) {
      const number = this.#poolOf(sequence).free.pop();
      if (number === undefined) return false;
      this.#add(sequence, { number, users: 0 });
    }
    tokens[position] = token;
    if ((position + 1) % this.size === 0) this.#publish(sequence, block);
    return true;
  }

  /** Have the next page, of these tokens, from another sequence that has filled it. Returns whether there is one. */
  share(sequence: number, tokens: readonly number[]): boolean {
    const before = this.#pages[sequence]!.at(-1);
    const page = this.#poolOf(sequence).full.get(keyOf(before, tokens));
    if (!page) return false;
    this.#add(sequence, page);
    this.#tokens[sequence]!.push(...tokens);
    return true;
  }

  /** Keep so many positions of a sequence, or as many less as are in a page that others have too. Returns how many. */
  keep(sequence: number, positions: number): number {
    const pages = this.#pages[sequence]!;
    const tokens = this.#tokens[sequence]!;
    const whole = Math.floor(positions / this.size);
    const shared = positions % this.size > 0 && pages[whole]! &&
      pages[whole].users > 1;
    const kept = Math.min(
      tokens.length,
      shared ? whole * this.size : positions,
    );
    tokens.length = kept;
    const pool = this.#poolOf(sequence);
    for (const page of pages.splice(Math.ceil(kept / this.size))) {
      if (--page.users > 0) continue;
      this.#unpublish(pool, page);
      pool.free.push(page.number);
    }
    // What is written into a page again is not found by what it held.
    if (kept % this.size > 0) this.#unpublish(pool, pages.at(-1)!);
    return kept;
  }

  #poolOf(sequence: number): Pool {
    return this.#pools[this.owner(sequence)]!;
  }

  #add(sequence: number, page: Page): void {
    const pages = this.#pages[sequence]!;
    this.#table[sequence * this.#shape.blocks + pages.length] = page.number;
    page.users++;
    pages.push(page);
  }

  /** Let others find a page that is full now. */
  #publish(sequence: number, block: number): void {
    const pages = this.#pages[sequence]!;
    const tokens = this.#tokens[sequence]!
      .slice(block * this.size, (block + 1) * this.size);
    const before = pages[block - 1];
    const known = block === 0 || before?.key !== undefined;
    const { full } = this.#poolOf(sequence);
    const key = keyOf(before, tokens);
    if (!known || tokens.includes(undefined) || full.has(key)) return;
    const page = pages[block]!;
    page.key = key;
    full.set(key, page);
  }

  #unpublish({ full }: Pool, page: Page): void {
    if (page.key === undefined) return;
    full.delete(page.key);
    delete page.key;
  }
}

/** A page is what it holds behind the page before it: who has it has that one too, so that numbers tell pages apart. */
function keyOf(
  before: Page | undefined,
  tokens: readonly (number | undefined)[],
): string {
  return `${before?.number ?? ""}:${tokens.join()}`;
}

/** Take the pages of all tokens of a step. Throws DataError where there are too few. */
export function placeTokens(
  pages: PageTable,
  { ids, sequence, position }: {
    readonly ids: Int32Array;
    readonly sequence: Int32Array;
    readonly position: Int32Array;
  },
): void {
  for (let i = 0; i < ids.length; i++) {
    if (pages.place(sequence[i]!, position[i]!, ids[i]!)) continue;
    throw new DataError(
      `Cannot run position ${position[i]!} of sequence ${sequence[
        i
      ]!}: other sequences have all pages. Run fewer at a time, or compile for more pages`,
    );
  }
}
