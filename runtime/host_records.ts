/** What a pool of the processor is to do, as records of words: gathered while others run, and run in their order. */

import type { LaunchTiming } from "./device.ts";

/** The longest write that is inside a record; longer ones are several records. */
const INLINE_BYTES = 1 << 20;

/** Arrays that records are in. */
type Words = Int32Array | Uint32Array;

/** A launch whose times are wanted, and who wants them. */
export interface TimedLaunch {
  /** Where its record begins. */
  readonly at: number;
  readonly times: LaunchTiming[];
}

/** Records that are run at once. */
export interface Batch<W extends Words> {
  readonly words: W;
  readonly used: number;
  readonly timed: readonly TimedLaunch[];
}

/** Records to be recorded again. */
export interface Kept<W extends Words = Words> {
  readonly words: W;
  /** Where in them launches begin whose times are wanted. */
  readonly timed: readonly number[];
}

/** Gathers records, and has them run. */
export class HostRecords<W extends Words> {
  readonly #make: (length: number) => W;
  readonly #run: (batch: Batch<W>, waited: boolean) => Promise<void>;
  /** Records that have not been started, and room for the next ones while these run. */
  #words: W;
  #spare: W;
  #used = 0;
  /** Words of all records so far, and of those that have run. */
  #recorded = 0;
  #ran = 0;
  #timed: TimedLaunch[] = [];
  #running: Promise<void> | undefined;

  /** `run` executes a batch; `waited`: somebody waits for it. */
  constructor(
    make: (length: number) => W,
    run: (batch: Batch<W>, waited: boolean) => Promise<void>,
  ) {
    this.#make = make;
    this.#run = run;
    this.#words = make(1 << 14);
    this.#spare = make(1 << 14);
  }

  /** The words of records that have not been started. */
  get words(): W {
    return this.#words;
  }

  /** Whether everything recorded so far has run. */
  get isIdle(): boolean {
    return this.#used === 0 && !this.#running;
  }

  /** Room for a record of `size` words, the first `head` of them 0; says where it begins. */
  begin(size: number, head: number): number {
    const at = this.#used;
    if (at + size > this.#words.length) {
      const larger = this.#make(Math.max(2 * this.#words.length, at + size));
      larger.set(this.#words.subarray(0, at));
      this.#words = larger;
    }
    this.#words.fill(0, at, at + head);
    this.#used += size;
    this.#recorded += size;
    return at;
  }

  /** Have the times of the launch that was recorded at a place. */
  time(at: number, times: LaunchTiming[]): void {
    this.#timed.push({ at, times });
  }

  /** Keep what `record` records. */
  keep(record: () => void): Kept<W> {
    const [from, timed] = [this.#used, this.#timed.length];
    record();
    return {
      words: this.#words.slice(from, this.#used) as W,
      timed: this.#timed.slice(timed).map(({ at }) => at - from),
    };
  }

  /** Record again what was kept. */
  again({ words, timed }: Kept, times?: LaunchTiming[]): void {
    const from = this.begin(words.length, 0);
    this.#words.set(words, from);
    if (!times) return;
    for (const at of timed) this.#timed.push({ at: from + at, times });
  }

  /** Record a write in parts: `begin` makes a record of `words` words for one, and says where its bytes go. */
  write(
    data: Uint8Array,
    begin: (
      part: {
        readonly done: number;
        readonly bytes: number;
        readonly words: number;
      },
    ) => number,
  ): void {
    for (let done = 0; done < data.length; done += INLINE_BYTES) {
      const part = data.subarray(done, done + INLINE_BYTES);
      const { length: bytes } = part;
      const at = begin({ done, bytes, words: Math.ceil(bytes / 4) });
      new Uint8Array(this.#words.buffer, 4 * at, bytes).set(part);
    }
  }

  /** Run everything recorded so far; what is recorded meanwhile is not waited for. */
  async settle(waited: boolean): Promise<void> {
    const until = this.#recorded;
    while (this.#ran < until) {
      this.#running ??= this.#next(waited).finally(() => {
        this.#running = undefined;
      });
      await this.#running;
    }
  }

  /** Resolves when nothing runs any more, whatever became of it. */
  async ended(): Promise<void> {
    await this.#running?.catch(() => {});
  }

  async #next(waited: boolean): Promise<void> {
    const words = this.#words;
    const used = this.#used;
    const timed = this.#timed;
    this.#words = this.#spare;
    this.#used = 0;
    this.#timed = [];
    await this.#run({ words, used, timed }, waited);
    this.#spare = words;
    this.#ran += used;
  }
}
