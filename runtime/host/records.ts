/** Work of a pool on the CPU as records of words: collected while others run, and run in order. */

import type { LaunchTiming } from "../device.ts";

/** Maximum bytes of a write inside a record; longer ones are several records. */
const INLINE_BYTES = 1 << 20;

/** Word arrays of records. */
type Words = Int32Array | Uint32Array;

/** A launch whose times are requested, and their destination. */
export interface TimedLaunch {
  /** Start of its record. */
  readonly at: number;
  readonly times: LaunchTiming[];
}

/** Records that run together. */
export interface Batch<W extends Words> {
  readonly words: W;
  readonly used: number;
  readonly timed: readonly TimedLaunch[];
}

/** Saved records for replay. */
export interface RecordedLaunches<W extends Words = Words> {
  readonly words: W;
  /** Starts of launches whose times are requested. */
  readonly timed: readonly number[];
}

/** Collects records and runs them. */
export class HostRecords<W extends Words = Words> {
  readonly #make: (length: number) => W;
  readonly #run: (batch: Batch<W>, waited: boolean) => Promise<void>;
  /** Records that have not been started, and space for the next ones while these run. */
  #words: W;
  #spare: W;
  #used = 0;
  /** Number of words of all records so far, and of those that have run. */
  #recorded = 0;
  #ran = 0;
  #timed: TimedLaunch[] = [];
  #running: Promise<void> | undefined;

  /** `run` executes a batch. `waited`: a caller waits for it. */
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

  /** Reserves a record of `size` words, the first `head` of them 0. Returns its start. */
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

  /** Requests the times of the launch recorded at an offset. */
  time(at: number, times: LaunchTiming[]): void {
    this.#timed.push({ at, times });
  }

  /** Saves the records of `record`. */
  keep(record: () => void): RecordedLaunches<W> {
    const [from, timed] = [this.#used, this.#timed.length];
    record();
    return {
      words: this.#words.slice(from, this.#used) as W,
      timed: this.#timed.slice(timed).map(({ at }) => at - from),
    };
  }

  /** Replays saved records. */
  replay({ words, timed }: RecordedLaunches, times?: LaunchTiming[]): void {
    const from = this.begin(words.length, 0);
    this.#words.set(words, from);
    if (!times) return;
    for (const at of timed) this.#timed.push({ at: from + at, times });
  }

  /**
   * Records a write in parts: `begin` creates a record of `words` words for one, and returns the offset of its bytes.
   */
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

  /** Runs everything recorded so far and waits for it, but not for later records. */
  async settle(waited: boolean): Promise<void> {
    const until = this.#recorded;
    while (this.#ran < until) {
      this.#running ??= this.#next(waited).finally(() => {
        this.#running = undefined;
      });
      await this.#running;
    }
  }

  /** Resolves when nothing runs any more, successful or not. */
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
