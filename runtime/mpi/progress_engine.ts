/**
 * Progress engine: MPI requests in flight. One loop tests all of them until they complete, and keeps the event loop
 * responsive.
 */

import { MachineError } from "../../spec/errors.ts";
import type { Argument, Binding, StartName } from "./binding.ts";

/** Caused by another rank, which exited or did not join. */
export class PeerError extends MachineError {
  override name = "PeerError";
}

/** Purpose and deadline of a request. */
export interface Purpose {
  /** For example `step 'dispatch'`. */
  readonly what: string;
  readonly seconds: number;
  /** On the clock of `performance.now`. */
  readonly deadline: number;
  /** The ranks that have not joined. */
  culprit(): string;
}

/**
 * Milliseconds for which the loop tests without pauses while nothing moves: longer than the skew between the ranks of a
 * step, if each has a core. A rank that pauses is late itself, and the others then pause too.
 */
const EAGER_MS = { dedicatedCore: 0.5, sharedCore: 0.05 };

/**
 * Pauses between tests in microseconds: a hundredth of the time waited so far, within these limits. Without pauses,
 * waiting ranks would block the cores of working ranks; Node's timers are too coarse.
 */
const PAUSE = { min: 20, max: 1000 };

/** A round of tests that takes this long has moved bytes: MPI moves them only during calls. */
const PROGRESS_MS = 0.01;

/**
 * Rounds without progress until the event loop runs. A rank that waits for long tests less often, to leave the cores to
 * others.
 */
const IDLE_ROUNDS = { soon: 100, long: 8 };
const TURN_MS = 0.5;

/** Milliseconds without progress after which a rank counts as waiting for long. */
const LONG_MS = 10;

/** A function that starts a request, and its completion callback. */
export interface Call {
  readonly name: StartName;
  readonly args: readonly Argument[];
  /** May throw an error, which fails all calls started together. */
  completed?(): void;
}

/** A call in flight. Its arguments reference memory that MPI may still access, which must not be collected. */
interface Started {
  readonly call: Call;
  readonly request: Int32Array | BigUint64Array;
  readonly batch: Batch;
}

/** Calls that were started together. */
interface Batch {
  readonly purpose: Purpose;
  open: number;
  resolve(): void;
  reject(error: unknown): void;
}

/** The requests of a process. */
export class ProgressEngine {
  readonly #mpi: Binding;
  readonly #started = new Set<Started>();
  /** Given up, but still known to MPI. */
  readonly #abandoned: Started[] = [];
  readonly #done = new Int32Array(1);
  readonly #eagerMs: number;
  #running = false;
  /** Time of the last progress or start. */
  #moved = 0;

  constructor(mpi: Binding, core: keyof typeof EAGER_MS) {
    this.#mpi = mpi;
    this.#eagerMs = EAGER_MS[core];
  }

  /** Starts all calls. Resolves when all are complete. */
  start(calls: readonly Call[], purpose: Purpose): Promise<void> {
    return new Promise((resolve, reject) => {
      const batch = { purpose, open: calls.length, resolve, reject };
      const mpi = this.#mpi;
      this.#moved = performance.now();
      for (const call of calls) {
        const request = mpi.newHandle(mpi.constants.requestNull);
        const problem = mpi.attempt(call.name, ...call.args, request);
        if (problem !== undefined) throw failure(call.name, purpose, problem);
        this.#started.add({ call, request, batch });
      }
      if (!this.#running) void this.#run();
    });
  }

  async #run(): Promise<void> {
    this.#running = true;
    // Other calls of this turn start before any wait.
    await undefined;
    while (this.#started.size > 0) {
      const long = performance.now() - this.#moved > LONG_MS;
      if (this.#turn(IDLE_ROUNDS[long ? "long" : "soon"])) {
        this.#moved = performance.now();
      }
      const now = performance.now();
      this.#giveUp(now);
      const waited = now - this.#moved;
      if (waited > this.#eagerMs) {
        const pause = Math.min(PAUSE.max, Math.max(PAUSE.min, 10 * waited));
        this.#mpi.sleep(Math.round(pause));
      }
      await new Promise((resolve) => setImmediate(resolve));
    }
    this.#running = false;
  }

  /** Tests all requests, repeatedly while bytes move. Returns whether any did. */
  #turn(rounds: number): boolean {
    const begun = performance.now();
    const open = this.#started.size;
    let [moved, idle, before] = [false, 0, begun];
    while (idle < rounds && before - begun < TURN_MS) {
      for (const started of this.#started) {
        // Any test advances all requests; at first each one is checked.
        if (this.#test(started)) this.#started.delete(started);
        else if (before > begun) break;
      }
      if (this.#started.size < open) return true;
      const now = performance.now();
      if (now - before > PROGRESS_MS) {
        moved = true;
        idle = 0;
      } else idle++;
      before = now;
    }
    return moved;
  }

  /** Whether a request has ended, successfully or not. */
  #test({ call, request, batch }: Started): boolean {
    const mpi = this.#mpi;
    const { statusIgnore } = mpi.abi;
    const problem = mpi.attempt("Test", request, this.#done, statusIgnore);
    if (problem !== undefined) {
      batch.reject(failure("Test", batch.purpose, problem));
      return true;
    }
    if (this.#done[0] === 0) return false;
    try {
      call.completed?.();
    } catch (error) {
      batch.reject(error);
    }
    if (--batch.open === 0) batch.resolve();
    return true;
  }

  #giveUp(now: number): void {
    for (const started of this.#started) {
      const { what, deadline, seconds, culprit } = started.batch.purpose;
      if (now <= deadline) continue;
      this.#started.delete(started);
      this.#abandoned.push(started);
      started.batch.reject(
        new PeerError(
          `Cannot continue with ${what}: ${culprit()} did not join within ${seconds} s. Look for a rank that is stuck, and check that every rank runs the same command`,
        ),
      );
    }
  }
}

function failure(name: string, { what }: Purpose, problem: string): PeerError {
  return new PeerError(
    `Cannot continue with ${what}: MPI_${name} says '${problem}'. Check that every rank runs the same command`,
  );
}
