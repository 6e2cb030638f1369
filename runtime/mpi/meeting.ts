/**
 * What ranks tell one another before every collective: which it is. MPI does not notice when ranks are out of step; it
 * waits for ever, breaks, or moves the wrong bytes. One short message to each rank of the group costs a few microseconds.
 */

import { MachineError } from "../../spec/errors.ts";
import type { Handle } from "./abi.ts";
import type { Binding } from "./binding.ts";
import type { Pump, Purpose } from "./pump.ts";
import type { MpiGroup } from "./world.ts";

const HEADER_BYTES = 128;
const HEADER_WORDS = 3;
const TEXT_BYTES = HEADER_BYTES - 4 * HEADER_WORDS;
const TAG = 1;

/** The processes among which ranks meet. */
interface Place {
  readonly handle: Handle;
  readonly rank: number;
  readonly size: number;
  readonly hosts: readonly string[];
}

/** Header: how often the group has met, a hash of what must be alike, the length of the text; then the text. */
export class Meeting {
  readonly #place: Place;
  readonly #mpi: Binding;
  readonly #pump: Pump;
  readonly #own = new Uint8Array(HEADER_BYTES);
  readonly #theirs: Uint8Array[];
  readonly #met = new Map<Handle, number>();

  constructor(place: Place, mpi: Binding, pump: Pump) {
    this.#place = place;
    this.#mpi = mpi;
    this.#pump = pump;
    this.#theirs = Array.from(
      { length: place.size },
      () => new Uint8Array(HEADER_BYTES),
    );
  }

  /** Wait until every rank of the group is about to do the same. Throws where one does something else. */
  async meet(
    group: MpiGroup,
    wait: Purpose,
    agreed: readonly number[],
  ): Promise<void> {
    const { what } = wait;
    const { rank, handle } = this.#place;
    const others = group.ranks.filter((other) => other !== rank);
    const times = this.#met.get(group.handle) ?? 0;
    this.#met.set(group.handle, times + 1);
    if (others.length === 0) return;
    write(this.#own, [times, hashOf(agreed)], what);
    const missing = new Set(others);
    const { byte } = this.#mpi.constants;
    const message = (data: Uint8Array, other: number) =>
      [data, HEADER_BYTES, byte, other, TAG, handle] as const;
    const purpose = { ...wait, culprit: () => this.#names([...missing]) };
    const receiving = others.map(async (other) => {
      const args = message(this.#theirs[other]!, other);
      await this.#pump.start("Irecv", args, purpose);
      missing.delete(other);
      this.#compare(other, what);
    });
    const sending = others.map((other) =>
      this.#pump.start("Isend", message(this.#own, other), purpose)
    );
    await Promise.all([...receiving, ...sending]);
  }

  #compare(other: number, what: string): void {
    const theirs = this.#theirs[other]!;
    if (this.#own.every((byte, i) => byte === theirs[i])) return;
    const [own, far] = [read(this.#own), read(theirs)];
    const state = far.what !== own.what
      ? `is in ${far.what}`
      : far.times !== own.times
      ? `exchanges for time ${far.times + 1}, and this rank for time ${
        own.times + 1
      }`
      : "exchanges other sizes";
    throw new MachineError(
      `Cannot go on with ${what}: ${
        this.#names([other])
      } is out of step, it ${state}. Check that every rank runs the same command on the same files`,
    );
  }

  #names(ranks: readonly number[]): string {
    const { hosts } = this.#place;
    return ranks.map((rank) =>
      hosts[rank] === undefined
        ? `rank ${rank}`
        : `rank ${rank} on ${hosts[rank]}`
    ).join(", ");
  }
}

function write(
  header: Uint8Array,
  words: readonly number[],
  what: string,
): void {
  header.fill(0);
  const { written } = new TextEncoder().encodeInto(
    what,
    header.subarray(4 * HEADER_WORDS),
  );
  new Uint32Array(header.buffer).set([...words, written]);
}

function read(
  header: Uint8Array,
): { readonly what: string; readonly times: number } {
  const words = new Uint32Array(header.buffer);
  const length = Math.min(words[2]!, TEXT_BYTES);
  const text = header.subarray(4 * HEADER_WORDS, 4 * HEADER_WORDS + length);
  return { what: new TextDecoder().decode(text), times: words[0]! };
}

/** FNV-1a over words. */
function hashOf(words: readonly number[]): number {
  return words.reduce(
    (hash, word) => Math.imul(hash ^ word, 0x01000193) >>> 0,
    0x811c9dc5,
  );
}
