/**
 * Message that ranks exchange before every collective: the identity of the collective. MPI does not detect ranks that
 * are at different steps; it hangs, fails, or moves the wrong bytes. One short message per rank of the group costs a
 * few microseconds.
 */

import { MachineError } from "../../spec/errors.ts";
import type { Handle } from "./abi.ts";
import type { Argument, Binding } from "./binding.ts";
import type { Call, ProgressEngine, Purpose } from "./progress_engine.ts";
import type { MpiGroup } from "./world.ts";

const HEADER_BYTES = 128;
const HEADER_WORDS = 3;
const TAG = 1;

/** The processes of a rendezvous. */
interface RendezvousGroup {
  readonly handle: Handle;
  readonly rank: number;
  readonly size: number;
  readonly hosts: readonly string[];
}

/**
 * Message: number of earlier rendezvous of the group, a hash of the data that must be equal, the length of the text,
 * and the text.
 */
export class Rendezvous {
  readonly #processes: RendezvousGroup;
  readonly #progress: ProgressEngine;
  readonly #local = new Uint32Array(HEADER_BYTES / 4);
  /** The text of the message. */
  #what = "";
  readonly #theirs: readonly Uint32Array[];
  /** For each rank, the arguments of the messages to it and from it. */
  readonly #sending: readonly (readonly Argument[])[];
  readonly #receiving: readonly (readonly Argument[])[];
  readonly #met = new Map<Handle, number>();

  constructor(
    processes: RendezvousGroup,
    mpi: Binding,
    progress: ProgressEngine,
  ) {
    this.#processes = processes;
    this.#progress = progress;
    this.#theirs = Array.from(
      { length: processes.size },
      () => new Uint32Array(HEADER_BYTES / 4),
    );
    const { byte } = mpi.constants;
    const message = (header: Uint32Array, other: number) => [
      header,
      HEADER_BYTES,
      byte,
      other,
      TAG,
      processes.handle,
    ];
    this.#sending = this.#theirs.map((_, rank) => message(this.#local, rank));
    this.#receiving = this.#theirs.map(message);
  }

  /** Waits until every rank of the group is at the same step. Throws if one is at another step. */
  async meet(
    group: MpiGroup,
    wait: Purpose,
    agreed: readonly number[],
  ): Promise<void> {
    const times = this.#met.get(group.handle) ?? 0;
    this.#met.set(group.handle, times + 1);
    if (group.size === 1) return;
    this.#write(times, hashOf(agreed), wait.what);
    const missing = new Set(group.ranks);
    missing.delete(this.#processes.rank);
    const calls: Call[] = [];
    for (const other of missing) {
      calls.push({
        name: "Irecv",
        args: this.#receiving[other]!,
        completed: () => {
          missing.delete(other);
          this.#compare(other, wait.what);
        },
      });
    }
    for (const other of missing) {
      calls.push({ name: "Isend", args: this.#sending[other]! });
    }
    await this.#progress.start(calls, {
      ...wait,
      culprit: () => this.#names([...missing]),
    });
  }

  #write(times: number, hash: number, what: string): void {
    const local = this.#local;
    local[0] = times;
    local[1] = hash;
    if (what === this.#what) return;
    this.#what = what;
    local.fill(0, HEADER_WORDS - 1);
    local[HEADER_WORDS - 1] = ENCODER.encodeInto(what, textIn(local)).written;
  }

  #compare(other: number, what: string): void {
    const [local, theirs] = [this.#local, this.#theirs[other]!];
    const words = HEADER_WORDS + Math.ceil(local[HEADER_WORDS - 1]! / 4);
    for (let i = 0; i < words; i++) {
      if (local[i] !== theirs[i]) throw this.#outOfStep(other, what);
    }
  }

  #outOfStep(other: number, what: string): MachineError {
    const [local, far] = [read(this.#local), read(this.#theirs[other]!)];
    const state = far.what !== local.what
      ? `is in ${far.what}`
      : far.times !== local.times
      ? `exchanges for time ${far.times + 1}, and this rank for time ${
        local.times + 1
      }`
      : "exchanges other sizes";
    return new MachineError(
      `Cannot continue with ${what}: ${
        this.#names([other])
      } is out of step, it ${state}. Check that every rank runs the same command on the same files`,
    );
  }

  #names(ranks: readonly number[]): string {
    const { hosts } = this.#processes;
    return ranks.map((rank) =>
      hosts[rank] === undefined
        ? `rank ${rank}`
        : `rank ${rank} on ${hosts[rank]}`
    ).join(", ");
  }
}

const ENCODER = new TextEncoder();

function read(
  header: Uint32Array,
): { readonly what: string; readonly times: number } {
  const text = textIn(header).subarray(0, header[2]);
  return { what: new TextDecoder().decode(text), times: header[0]! };
}

function textIn(header: Uint32Array): Uint8Array {
  return new Uint8Array(header.buffer, 4 * HEADER_WORDS);
}

/** FNV-1a over words. */
function hashOf(words: readonly number[]): number {
  let hash = 0x811c9dc5;
  for (const word of words) hash = Math.imul(hash ^ word, 0x01000193) >>> 0;
  return hash;
}
