/** All processes of an MPI job, and collectives among them that leave the event loop alive and have a deadline. */

import { hostname } from "node:os";
import process from "node:process";
import { MachineError } from "../../spec/errors.ts";
import type { Handle } from "./abi.ts";
import { type Argument, type Binding, loadBinding } from "./binding.ts";

/** What a collective is for, in messages, and how long the other ranks may keep it waiting. */
export interface Wait {
  readonly what: string;
  /** Default: `DEADLINE_MS`. */
  readonly deadlineMs?: number;
}

/** How long ranks may keep one another waiting in a step. A device that compiles a kernel at its first launch is slow once. */
export const DEADLINE_MS = 120_000;

/** How long ranks may keep one another waiting while they start and load weights. */
export const LOADING_DEADLINE_MS = 3_600_000;

/** Polls before a wait sleeps in between. */
const EAGER_POLLS = 4;

/** A pause between polls. Without it, ranks that wait keep those from the cores that they wait for. */
const PAUSE_MICROSECONDS = 20;

/** Bytes between ranks: how many elements go to, and come from, each position, and where they begin. */
export interface Blocks {
  readonly data: Uint8Array;
  readonly counts: readonly number[];
  readonly offsets: readonly number[];
}

/** A group of ranks that can exchange. */
export interface MpiGroup {
  readonly handle: Handle;
  readonly size: number;
}

// MPI can be initialised once in the life of a process.
let world: Promise<MpiWorld> | undefined;
let place: RankPlace | undefined;

/** Which rank this process is, and where it runs. */
export interface RankPlace {
  readonly rank: number;
  readonly host: string;
}

/** Start MPI in this process; later calls give the same. Throws MachineError where there is none. */
export function openWorld(): Promise<MpiWorld> {
  return world ??= loadBinding().then((binding) => {
    const opened = new MpiWorld(binding);
    place = { rank: opened.rank, host: hostname() };
    return opened;
  });
}

/** Which rank this process is; undefined: it is no part of an MPI job, or not yet. */
export function rankPlace(): RankPlace | undefined {
  return place;
}

/** The processes of a job. */
export class MpiWorld implements MpiGroup {
  readonly rank: number;
  readonly size: number;
  /** This process among those on its host. */
  readonly localRank: number;
  readonly localSize: number;
  readonly handle: Handle;
  /** The library's name and version. */
  readonly library: string;
  readonly #mpi: Binding;
  /** What MPI may still read or write; collecting it would pull memory from under the library. */
  readonly #inFlight = new Set<readonly Argument[]>();
  readonly #elements = new Map<number, Handle>();
  readonly #groups: Handle[] = [];
  #finished = false;

  constructor(mpi: Binding) {
    this.#mpi = mpi;
    const { world, errorsReturn } = mpi.constants;
    mpi.call("Init_thread", null, null, mpi.abi.threadFunneled, int());
    // A process that ends before the others would leave them waiting, and not every launcher notices.
    process.on("exit", (code) => {
      if (!this.#finished) mpi.call("Abort", world, code || 1);
    });
    // MPICH's launcher sends it when another rank dies; Node would open a debugger port.
    process.on("SIGUSR1", () => {});
    mpi.call("Comm_set_errhandler", world, errorsReturn);
    this.handle = world;
    this.library = mpi.version;
    this.rank = this.#ask("Comm_rank", world);
    this.size = this.#ask("Comm_size", world);
    const host = mpi.newHandle();
    const { commTypeShared } = mpi.abi;
    const { infoNull } = mpi.constants;
    mpi.call("Comm_split_type", world, commTypeShared, 0, infoNull, host);
    this.#groups.push(host[0]!);
    this.localRank = this.#ask("Comm_rank", host[0]!);
    this.localSize = this.#ask("Comm_size", host[0]!);
  }

  /** Put this process in the group of all that give the same number, at a position. Every process must call it. */
  async split(
    group: { readonly number: number; readonly position: number },
    wait: Wait,
  ): Promise<MpiGroup> {
    // MPI splits only by a call that blocks; waiting happens before it.
    await this.barrier(this, wait);
    const made = this.#mpi.newHandle();
    this.#mpi.call(
      "Comm_split",
      this.handle,
      group.number,
      group.position,
      made,
    );
    this.#groups.push(made[0]!);
    return { handle: made[0]!, size: this.#ask("Comm_size", made[0]!) };
  }

  /** Wait for every rank of a group. */
  async barrier(group: MpiGroup, wait: Wait): Promise<void> {
    await this.#complete("Ibarrier", [group.handle], wait);
  }

  /** The bytes of every rank of a group, by position; all give the same number. */
  async allGather(
    group: MpiGroup,
    bytes: Uint8Array,
    to: Uint8Array,
    wait: Wait,
  ): Promise<void> {
    const { length } = bytes;
    checkRoom(to, group.size * length);
    const { byte } = this.#mpi.constants;
    await this.#complete("Iallgather", [
      ...[memory(bytes), length, byte],
      ...[memory(to), length, byte, group.handle],
    ], wait);
  }

  /** Send blocks to, and receive blocks from, every rank of a group; counts and offsets are in elements of `elementBytes`. */
  async allToAll(
    group: MpiGroup,
    elementBytes: number,
    { send, receive }: { readonly send: Blocks; readonly receive: Blocks },
    wait: Wait,
  ): Promise<void> {
    for (const { data, counts, offsets } of [send, receive]) {
      counts.forEach((count, p) =>
        checkRoom(data, (offsets[p]! + count) * elementBytes)
      );
    }
    const element = this.#element(elementBytes);
    const half = ({ data, counts, offsets }: Blocks): Argument[] => [
      memory(data),
      Int32Array.from(counts),
      Int32Array.from(offsets),
      element,
    ];
    await this.#complete("Ialltoallv", [
      ...half(send),
      ...half(receive),
      group.handle,
    ], wait);
  }

  /** A text of every rank, everywhere. */
  async gatherTexts(text: string, wait: Wait): Promise<string[]> {
    const bytes = new TextEncoder().encode(text);
    const lengths = new Int32Array(this.size);
    const own = Int32Array.of(bytes.length);
    await this.allGather(this, viewOf(own), viewOf(lengths), wait);
    const parts = await this.gather(bytes, [...lengths], {
      ...wait,
      everywhere: true,
    });
    return parts!.map((part) => new TextDecoder().decode(part));
  }

  /** Bytes of every rank, on rank 0 or everywhere; each knows how many the others give. */
  async gather(
    bytes: Uint8Array,
    lengths: readonly number[],
    options: Wait & { readonly everywhere: boolean },
  ): Promise<Uint8Array[] | undefined> {
    // In words where it can be, so that no count passes 2^31.
    const unit = lengths.every((length) => length % 4 === 0) ? 4 : 1;
    const here = options.everywhere || this.rank === 0;
    const toMe = lengths.map((length) => here ? length / unit : 0);
    const own = lengths[this.rank]! / unit;
    const offsets = startsOf(toMe);
    const data = new Uint8Array(sum(toMe) * unit);
    await this.allToAll(this, unit, {
      send: {
        data: bytes,
        counts: lengths.map((_, to) =>
          options.everywhere || to === 0 ? own : 0
        ),
        offsets: lengths.map(() => 0),
      },
      receive: { data, counts: toMe, offsets },
    }, options);
    if (!here) return undefined;
    return lengths.map((length, from) => {
      const start = offsets[from]! * unit;
      return data.subarray(start, start + length);
    });
  }

  /** Every process is done: let them end. Without this, the end of a process ends the job as a failure. */
  async finish(): Promise<void> {
    await this.barrier(this, { what: "the end" });
    const mpi = this.#mpi;
    for (const handle of this.#elements.values()) {
      mpi.call("Type_free", mpi.newHandle(handle));
    }
    for (const handle of this.#groups) {
      mpi.call("Comm_free", mpi.newHandle(handle));
    }
    this.#finished = true;
    mpi.call("Finalize");
  }

  /** Start a collective and poll until it is done. */
  async #complete(
    name: "Ibarrier" | "Iallgather" | "Ialltoallv",
    args: readonly Argument[],
    { what, deadlineMs = DEADLINE_MS }: Wait,
  ): Promise<void> {
    const mpi = this.#mpi;
    const request = mpi.newHandle(mpi.constants.requestNull);
    const done = new Int32Array(1);
    const keep = [...args, request, done];
    this.#inFlight.add(keep);
    mpi.call(name, ...args, request);
    const start = performance.now();
    for (let polls = 0;; polls++) {
      mpi.call("Test", request, done, mpi.abi.statusIgnore);
      if (done[0] !== 0) break;
      if (performance.now() - start > deadlineMs) {
        throw new MachineError(
          `Cannot go on with ${what}: another rank did not join within ${
            deadlineMs / 1000
          } s. Look for a rank that is stuck, and check that every rank runs the same command`,
        );
      }
      if (polls >= EAGER_POLLS) mpi.sleep(PAUSE_MICROSECONDS);
      await new Promise((resolve) => setImmediate(resolve));
    }
    this.#inFlight.delete(keep);
  }

  #ask(name: "Comm_rank" | "Comm_size", handle: Handle): number {
    const result = int();
    this.#mpi.call(name, handle, result);
    return result[0]!;
  }

  /** A datatype of some bytes. Counting rows instead of bytes lets one message be longer than 2 GiB. */
  #element(bytes: number): Handle {
    const known = this.#elements.get(bytes);
    if (known !== undefined) return known;
    const made = this.#mpi.newHandle();
    this.#mpi.call("Type_contiguous", bytes, this.#mpi.constants.byte, made);
    this.#mpi.call("Type_commit", made);
    this.#elements.set(bytes, made[0]!);
    return made[0]!;
  }
}

/** Where blocks begin that lie one after the other. */
export function startsOf(counts: readonly number[]): number[] {
  let next = 0;
  return counts.map((count) => {
    const start = next;
    next += count;
    return start;
  });
}

/** The sum of some numbers. */
export function sum(values: readonly number[]): number {
  return values.reduce((n, value) => n + value, 0);
}

function int(): Int32Array {
  return new Int32Array(1);
}

function viewOf(words: Int32Array): Uint8Array {
  return new Uint8Array(words.buffer, words.byteOffset, words.byteLength);
}

const NOTHING = new Uint8Array(8);

/** Memory to pass; an empty array may have no address, which some libraries stumble over. */
function memory(data: Uint8Array): Uint8Array {
  return data.length === 0 ? NOTHING : data;
}

/** MPI writes where it is told to; a wrong length would be another's memory. */
function checkRoom(data: Uint8Array, bytes: number): void {
  if (data.length < bytes) {
    throw new Error(
      `internal: ${bytes} bytes in memory of ${data.length} are to be exchanged`,
    );
  }
}
