/**
 * Unused pages of one group on one rank: free pages, and cached pages, which sequences with the same prefix can share.
 */

/** A page of a block, and its number of sequences. */
export interface Page<B> {
  readonly number: number;
  readonly block: B;
  users: number;
}

/** Unused pages, cached ones in order of their last use. */
export class UnusedPages<B> {
  /** The next one last. */
  readonly #free: number[];
  /** Least recently used first. */
  readonly #cached = new Set<Page<B>>();

  /** Creates a number of free pages. */
  constructor(count: number) {
    this.#free = Array.from({ length: count }, (_, i) => count - 1 - i);
  }

  /** Number of unused pages. */
  get count(): number {
    return this.#free.length + this.#cached.size;
  }

  /** Allocates a free page, or else the least recently used cached page. `count` must be positive. */
  take(): { readonly number: number; readonly evicted?: Page<B> } {
    const number = this.#free.pop();
    if (number !== undefined) return { number };
    const [evicted] = this.#cached;
    this.#cached.delete(evicted!);
    return { number: evicted!.number, evicted: evicted! };
  }

  /** Caches a page that no sequence uses any longer. */
  cache(page: Page<B>): void {
    this.#cached.add(page);
  }

  /** Removes a page that a sequence uses, if it was cached. */
  use(page: Page<B>): void {
    this.#cached.delete(page);
  }

  /** Frees a page. */
  free(page: Page<B>): void {
    this.#cached.delete(page);
    this.#free.push(page.number);
  }
}
