/** All processes of an MPI job, and collectives among them with a deadline that keep the event loop responsive. */

import { hostname } from "node:os";
import process from "node:process";
import { MachineError } from "../../spec/errors.ts";
import { sum } from "../../spec/sum.ts";
import { availableCores } from "../available_cores.ts";
import { type Handle, launcherFacts } from "./abi.ts";
import { type Argument, type Binding, loadBinding } from "./binding.ts";
import {
  type Blocks,
  inUnits,
  layOut,
  LONGEST_COUNT,
  startsOf,
  unitOf,
  viewOf,
} from "./blocks.ts";
import { Rendezvous } from "./rendezvous.ts";
import { ProgressEngine, type Purpose } from "./progress_engine.ts";

/** Purpose of a collective for messages, and its deadline. */
export interface Wait {
  readonly what: string;
  /** Time limit in milliseconds. Default: the deadline of the world. */
  readonly deadlineMs?: number;
}

/**
 * Maximum milliseconds that ranks wait for each other in a step. A device that compiles a kernel at its first launch is
 * slow once.
 */
export const DEADLINE_MS = 120_000;

/** Maximum milliseconds that ranks wait for each other while they start and load weights. */
export const LOADING_DEADLINE_MS = 3_600_000;

/** Microseconds for the launcher to read the last output of a failed rank. */
const BEFORE_ABORT_MICROSECONDS = 200_000;

/** Tags of blocks that one rank sends another. Rendezvous has another tag. */
const TAGS = { send: 2, gather: 3, text: 4 } as const;

/** A group of ranks that can exchange data. */
export interface MpiGroup {
  readonly handle: Handle;
  readonly size: number;
  /** Its ranks, by group rank. */
  readonly ranks: readonly number[];
}

/** Options of an MPI process. */
export interface WorldOptions {
  /** Maximum milliseconds that ranks wait for each other in a step. Default: `DEADLINE_MS`. */
  readonly deadlineMs?: number;
  /** Receives the position of this rank, such as `in step 'dispatch'`, whenever it changes. */
  readonly note?: (step: string) => void;
  /** Receives the exit code of a process that exits without `finish`, before it ends the job. */
  readonly left?: (code: number) => void;
  /** Maximum MPI count; longer messages use larger units. For tests. */
  readonly longestCount?: number;
}

/** Blocks of an exchange. */
export interface ExchangedBlocks extends Blocks {
  /** Numbers that are equal on all ranks of the group. */
  readonly agreed: readonly number[];
}

// MPI can be initialized once per process.
let world: Promise<MpiWorld> | undefined;
let opened: MpiWorld | undefined;

/** Rank of this process, its host, and its last exchange. */
export interface RankIdentity {
  readonly rank: number;
  readonly host: string;
  /** For example `in step 'dispatch'` or `after the start`. */
  readonly step: string;
}

/** Starts MPI in this process; later calls return the same world. Throws MachineError without MPI. */
export function openWorld(options: WorldOptions = {}): Promise<MpiWorld> {
  return world ??= loadBinding().then(async (binding) => {
    opened = new MpiWorld(binding, options);
    await checkSize(opened);
    await opened.learnHosts();
    return opened;
  });
}

/** Detects processes whose library does not support their launcher: each would be a job of one rank. */
async function checkSize(world: MpiWorld): Promise<void> {
  const { size, library } = world;
  const { size: started = size } = launcherFacts(process.env);
  if (started === size) return;
  await world.finish();
  throw new MachineError(
    `Cannot join the job: its launcher started ${started} processes, and the MPI library, '${library}', knows of ${size}. Use the mpirun of that library`,
  );
}

/** Rank of this process. Undefined if it does not, or not yet, belong to an MPI job. */
export function rankIdentity(): RankIdentity | undefined {
  return opened &&
    { rank: opened.rank, host: hostname(), step: opened.step };
}

/** The processes of a job. */
export class MpiWorld implements MpiGroup {
  readonly rank: number;
  readonly size: number;
  /** Index of this process among those on its host. */
  readonly localRank: number;
  readonly localSize: number;
  readonly handle: Handle;
  readonly ranks: readonly number[];
  /** The library's name and version. */
  readonly library: string;
  /** Host name of every rank. */
  hosts: readonly string[] = [];
  readonly #mpi: Binding;
  readonly #progress: ProgressEngine;
  readonly #rendezvous: Rendezvous;
  readonly #units = new Map<number, Handle>();
  readonly #groups: Handle[] = [];
  readonly #options: WorldOptions;
  /** Collectives start in the order of their calls, which is the same on every rank. */
  #turn = Promise.resolve();
  /** Messages of `gatherDirectly` are sent in the order of its calls. */
  #gathering: Promise<unknown> = Promise.resolve();
  #step = "";
  #finished = false;

  constructor(mpi: Binding, options: WorldOptions = {}) {
    this.#mpi = mpi;
    this.#options = options;
    const { world, errorsReturn } = mpi.constants;
    mpi.call("Init_thread", null, null, mpi.abi.threadFunneled, int());
    // A process that exits early would leave the others waiting, and not every launcher notices.
    process.on("exit", (code) => {
      if (this.#finished) return;
      this.#options.left?.(code);
      // MPICH's launcher discards unread output when a job is aborted, and it may contain the reason.
      mpi.sleep(BEFORE_ABORT_MICROSECONDS);
      mpi.call("Abort", world, code || 1);
    });
    // MPICH's launcher sends it when another rank dies; Node.js would open a debugger port.
    process.on("SIGUSR1", () => {});
    mpi.call("Comm_set_errhandler", world, errorsReturn);
    this.handle = world;
    this.library = mpi.version;
    this.rank = this.#ask("Comm_rank", world);
    this.size = this.#ask("Comm_size", world);
    this.ranks = Array.from({ length: this.size }, (_, rank) => rank);
    const host = mpi.newHandle();
    const { commTypeShared } = mpi.abi;
    const { infoNull } = mpi.constants;
    mpi.call("Comm_split_type", world, commTypeShared, 0, infoNull, host);
    this.#groups.push(host[0]!);
    this.localRank = this.#ask("Comm_rank", host[0]!);
    this.localSize = this.#ask("Comm_size", host[0]!);
    const alone = this.localSize <= availableCores();
    this.#progress = new ProgressEngine(
      mpi,
      alone ? "dedicatedCore" : "sharedCore",
    );
    this.#rendezvous = new Rendezvous(this, mpi, this.#progress);
  }

  /** Position of this rank. */
  get step(): string {
    return this.#step;
  }

  /** Gathers the host names of all ranks. Every process must call it, once. */
  async learnHosts(): Promise<void> {
    this.hosts = await this.gatherTexts(hostname(), {
      what: "the start",
      deadlineMs: LOADING_DEADLINE_MS,
    });
  }

  /** Creates a group of this rank and others, by group rank. Every process must call it, with its own group. */
  async split(ranks: readonly number[], wait: Wait): Promise<MpiGroup> {
    // MPI splits only by a blocking call; waiting happens before it.
    await this.barrier(this, wait);
    const made = this.#mpi.newHandle();
    const groupRank = ranks.indexOf(this.rank);
    this.#mpi.call("Comm_split", this.handle, ranks[0]!, groupRank, made);
    this.#groups.push(made[0]!);
    return { handle: made[0]!, size: ranks.length, ranks };
  }

  /** Waits for every rank of a group. */
  async barrier(group: MpiGroup, wait: Wait): Promise<void> {
    await this.#inCallOrder(group, wait, () => ({ agreed: [] }));
  }

  /** Gathers the bytes of every rank of a group, by group rank, all of equal length. */
  async allGather(
    group: MpiGroup,
    bytes: Uint8Array,
    to: Uint8Array,
    wait: Wait,
  ): Promise<void> {
    const { length } = bytes;
    const send = group.ranks.map(() => bytes);
    const receive = group.ranks.map((_, p) =>
      to.subarray(p * length, (p + 1) * length)
    );
    await this.exchange(group, () => ({
      send,
      receive,
      agreed: [length],
    }), wait);
  }

  /**
   * Exchanges a block with every rank of a group, by group rank, in place; the blocks of one side are in one
   * ArrayBuffer. `prepare` is called at once. Exchanges start in the order of their calls, however long it takes.
   */
  async exchange(
    group: MpiGroup,
    prepare: () => ExchangedBlocks | Promise<ExchangedBlocks>,
    wait: Wait,
  ): Promise<void> {
    await this.#inCallOrder(
      group,
      wait,
      prepare,
      ({ send, receive }) => [
        ...this.#argumentsOf(send),
        ...this.#argumentsOf(receive),
        group.handle,
      ],
    );
  }

  /** Sends a block to a rank, which receives it. Blocks between two ranks arrive in order. */
  async send(to: number, block: Uint8Array, wait: Wait): Promise<void> {
    await this.#transfer("Isend", { other: to, block, tag: TAGS.send }, wait);
  }

  /** Receives a block of this length from a rank. */
  async receive(from: number, block: Uint8Array, wait: Wait): Promise<void> {
    this.#note(`in ${wait.what}`);
    const tag = TAGS.send;
    await this.#transfer("Irecv", { other: from, block, tag }, wait);
    this.#note(`after ${wait.what}`);
  }

  async #transfer(
    name: "Isend" | "Irecv",
    { other, block, tag }: {
      readonly other: number;
      readonly block: Uint8Array;
      readonly tag: number;
    },
    wait: Wait,
  ): Promise<void> {
    const [data, [count], , unit] = this.#argumentsOf([block]) as [
      Uint8Array,
      Int32Array,
      Int32Array,
      Handle,
    ];
    const host = this.hosts[other];
    await this.#progress.start([{
      name,
      args: [data, count!, unit, other, tag, this.handle],
    }], {
      ...this.#purpose(wait),
      culprit: () => `rank ${other}${host === undefined ? "" : ` on ${host}`}`,
    });
  }

  #argumentsOf(blocks: readonly Uint8Array[]): Argument[] {
    const { longestCount = LONGEST_COUNT } = this.#options;
    const { data, lengths, offsets } = layOut(blocks);
    const unit = unitOf(lengths, offsets, longestCount);
    return [
      data,
      inUnits(lengths, unit),
      inUnits(offsets, unit),
      this.#unit(unit),
    ];
  }

  /** Gathers a text of every rank on all ranks. */
  async gatherTexts(text: string, wait: Wait): Promise<string[]> {
    const bytes = new TextEncoder().encode(text);
    const lengths = new Int32Array(this.size);
    const local = Int32Array.of(bytes.length);
    await this.allGather(this, viewOf(local), viewOf(lengths), wait);
    const parts = await this.gather(bytes, [...lengths], {
      ...wait,
      everywhere: true,
    });
    return parts!.map((part) => new TextDecoder().decode(part));
  }

  /**
   * Sends a text of rank 0 to all others by messages between two ranks: they wait for no collective, and collectives do
   * not wait for them. Returns it on every rank. Texts arrive in the order in which they are sent.
   */
  async broadcastText(text: string, wait: Wait): Promise<string> {
    const tag = TAGS.text;
    if (this.rank > 0) {
      const receive = async (length: number) => {
        const block = new Uint8Array(length);
        await this.#transfer("Irecv", { other: 0, block, tag }, wait);
        return block;
      };
      const [length] = new Int32Array((await receive(4)).buffer);
      return new TextDecoder().decode(await receive(length!));
    }
    const bytes = new TextEncoder().encode(text);
    const blocks = [viewOf(Int32Array.of(bytes.length)), bytes];
    await Promise.all(
      this.ranks.slice(1).flatMap((other) =>
        blocks.map((block) =>
          this.#transfer("Isend", { other, block, tag }, wait)
        )
      ),
    );
    return text;
  }

  /** Gathers bytes of every rank on rank 0 or on all ranks. Each rank knows the sizes of the others. */
  async gather(
    bytes: Uint8Array | Promise<Uint8Array>,
    lengths: readonly number[],
    options: Wait & { readonly everywhere: boolean },
  ): Promise<Uint8Array[] | undefined> {
    const { everywhere } = options;
    const receive = this.#gathered(lengths, everywhere);
    await this.exchange(this, async () => {
      const known = await bytes;
      const send = lengths.map((_, to) =>
        everywhere || to === 0 ? known : known.subarray(0, 0)
      );
      return { send, receive, agreed: lengths };
    }, options);
    return everywhere || this.rank === 0 ? receive : undefined;
  }

  /**
   * `gather` by messages between two ranks: a rank waits only for the ranks whose bytes it receives. `bytes` may arrive
   * later.
   */
  async gatherDirectly(
    bytes: Promise<Uint8Array>,
    lengths: readonly number[],
    { everywhere, ...wait }: Wait & { readonly everywhere: boolean },
  ): Promise<Uint8Array[] | undefined> {
    const { rank } = this;
    const tag = TAGS.gather;
    const receive = this.#gathered(lengths, everywhere);
    const moved = receive.flatMap((block, other) =>
      other === rank || block.length === 0
        ? []
        : this.#transfer("Irecv", { other, block, tag }, wait)
    );
    // Messages between two ranks arrive in the order in which they are sent.
    const sent = this.#gathering.then(() => bytes).then((block) => {
      receive[rank]?.set(block.subarray(0, receive[rank].length));
      if (block.length === 0) return [];
      const to = this.ranks.filter((other) =>
        other !== rank && (everywhere || other === 0)
      );
      return to.map((other) =>
        this.#transfer("Isend", { other, block, tag }, wait)
      );
    });
    this.#gathering = sent.catch(() => {});
    await Promise.all([...moved, sent.then((all) => Promise.all(all))]);
    return everywhere || rank === 0 ? receive : undefined;
  }

  /** Blocks for gathered bytes, by rank, in one ArrayBuffer; empty ones on ranks that do not receive them. */
  #gathered(lengths: readonly number[], everywhere: boolean): Uint8Array[] {
    const here = everywhere || this.rank === 0;
    const coming = lengths.map((length) => here ? length : 0);
    const data = new Uint8Array(sum(coming));
    return startsOf(coming).map((start, from) =>
      data.subarray(start, start + coming[from]!)
    );
  }

  /** Marks every process as done. Without it, the exit of a process ends the job as a failure. */
  async finish(): Promise<void> {
    await this.barrier(this, { what: "the end" });
    const mpi = this.#mpi;
    for (const handle of this.#units.values()) {
      mpi.call("Type_free", mpi.newHandle(handle));
    }
    for (const handle of this.#groups) {
      mpi.call("Comm_free", mpi.newHandle(handle));
    }
    this.#finished = true;
    mpi.call("Finalize");
  }

  /**
   * Prepares at once; after earlier collectives have started, meets the other ranks, starts at the same time, and waits
   * for the end. Data from ranks at another step is never used.
   */
  async #inCallOrder<T extends { readonly agreed: readonly number[] }>(
    group: MpiGroup,
    wait: Wait,
    prepare: () => T | Promise<T>,
    argumentsOf?: (prepared: T) => readonly Argument[],
  ): Promise<void> {
    const before = this.#turn;
    let pass!: () => void;
    this.#turn = new Promise((resolve) => pass = resolve);
    let moved: Promise<void> | undefined;
    try {
      const prepared = await prepare();
      const args = argumentsOf?.(prepared);
      await before;
      this.#note(`in ${wait.what}`);
      const purpose = this.#purpose(wait);
      const met = this.#rendezvous.meet(group, purpose, prepared.agreed);
      if (args) {
        moved = this.#progress.start([{ name: "Ialltoallv", args }], purpose);
        // It also fails if ranks are at different steps, with a less specific error.
        moved.catch(() => {});
      }
      await met;
    } finally {
      pass();
    }
    await moved;
    this.#note(`after ${wait.what}`);
  }

  #purpose({ what, deadlineMs }: Wait): Purpose {
    const ms = deadlineMs ?? this.#options.deadlineMs ?? DEADLINE_MS;
    return {
      what,
      deadline: performance.now() + ms,
      seconds: ms / 1000,
      culprit: () => "another rank",
    };
  }

  #note(step: string): void {
    this.#step = step;
    this.#options.note?.(step);
  }

  #ask(name: "Comm_rank" | "Comm_size", handle: Handle): number {
    const result = int();
    this.#mpi.call(name, handle, result);
    return result[0]!;
  }

  /** A datatype of a number of bytes. */
  #unit(bytes: number): Handle {
    if (bytes === 1) return this.#mpi.constants.byte;
    const known = this.#units.get(bytes);
    if (known !== undefined) return known;
    const made = this.#mpi.newHandle();
    this.#mpi.call("Type_contiguous", bytes, this.#mpi.constants.byte, made);
    this.#mpi.call("Type_commit", made);
    this.#units.set(bytes, made[0]!);
    return made[0]!;
  }
}

function int(): Int32Array {
  return new Int32Array(1);
}
