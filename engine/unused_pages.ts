/** Pages of one group on one rank that no sequence uses: free ones, and cached ones, whose contents can be shared. */

/** A page of a block, and its number of sequences. */
export interface Page<B> {
  readonly number: number;
  readonly group: number;
  readonly block: B;
  users: number;
}

/** Unused pages. */
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

  /** Allocates a page: a free one, otherwise the least recently used cached one. There must be one. */
  take(): { readonly number: number; readonly evicted?: Page<B> } {
    const number = this.#free.pop();
    if (number !== undefined) return { number };
    const [evicted] = this.#cached;
    this.#cached.delete(evicted!);
    return { number: evicted!.number, evicted: evicted! };
  }

  /** Adds a page to the cached ones. */
  cache(page: Page<B>): void {
    this.#cached.add(page);
  }

  /** Removes a page from the cached ones, if it is one, because a sequence uses it. */
  use(page: Page<B>): void {
    this.#cached.delete(page);
  }

  /** Frees a page. */
  free(page: Page<B>): void {
    this.#cached.delete(page);
    this.#free.push(page.number);
  }
}
