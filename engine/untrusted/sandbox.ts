/**
 * A process with limits of memory and of time per call, for untrusted input. A thread does not suffice: V8 aborts the
 * entire process if an array of a thread exceeds its memory limit.
 */

import { type ChildProcess, spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { DataError, MachineError } from "../../spec/errors.ts";
import { RUNNING_ROOT } from "../../spec/running.ts";
import { shown } from "../../spec/shown.ts";
import type { Answer, Task } from "./program.ts";

/** Default seconds of CPU time per call. */
export const SECONDS = 2;

/** Limit of wall-clock time as a multiple of CPU time, on a busy machine. */
const PATIENCE = 20;

/** Milliseconds between checks of the time. */
const LOOK_MS = 100;

/** Milliseconds per tick of CPU time in Linux. */
const TICK_MS = 10;

export type { Task } from "./program.ts";

/** A call failed or exceeded its limits. */
export class UntrustedError extends Error {
  override name = "UntrustedError";
  /** The state part of the message. */
  readonly state: string;
  constructor({ state }: { readonly state: string }) {
    super(`Cannot run untrusted text: ${state}`);
    this.state = state;
  }
}

/**
 * Executes an action. Throws an UntrustedError as a DataError: `purpose` follows "Cannot", and `remedy` is the last
 * sentence.
 */
export async function callUntrusted<R>(
  action: () => Promise<R>,
  { purpose, remedy }: { readonly purpose: string; readonly remedy: string },
): Promise<R> {
  try {
    return await action();
  } catch (error) {
    if (!(error instanceof UntrustedError)) throw error;
    const state = shown(error.state.replace(/[.\s]+$/, ""));
    throw new DataError(`Cannot ${purpose}: ${state}. ${remedy}`);
  }
}

/** Executes calls, one after another. */
export class Sandbox {
  readonly #child: ChildProcess;
  readonly #memory: number;
  #last: Promise<unknown> = Promise.resolve();
  #pending:
    | { answer(answer: Answer): void; fail(error: Error): void }
    | undefined;
  #ended: Error | undefined;

  /** `memory`: memory limit in MiB. */
  constructor({ memory }: { readonly memory: number }) {
    this.#memory = memory;
    const child = spawn(process.execPath, [
      `--max-old-space-size=${memory}`,
      fileURLToPath(new URL("engine/untrusted/program.js", RUNNING_ROOT)),
    ], {
      stdio: ["ignore", "ignore", "ignore", "ipc"],
      serialization: "advanced",
      // Loaders and debuggers apply to this process only.
      env: { ...process.env, NODE_OPTIONS: "" },
    });
    this.#child = child;
    child.on("message", (answer: Answer) => this.#pending?.answer(answer));
    child.on("error", ({ message }) =>
      this.#end(
        new MachineError(
          `Cannot start a process: ${message}. Free memory, or allow more processes (ulimit -u)`,
        ),
      ));
    child.on(
      "exit",
      (code, signal) => this.#end(exitError(code, signal, memory)),
    );
    this.#idle();
  }

  /** Whether its process has exited or is about to. */
  get ended(): boolean {
    return this.#ended !== undefined;
  }

  /**
   * Calls a task with a limit of `seconds` of CPU time. Throws UntrustedError if it fails or exceeds its limits; the
   * process is then terminated, and later calls fail too.
   */
  async call(
    task: Task,
    args: readonly unknown[],
    seconds: number = SECONDS,
  ): Promise<unknown> {
    const before = this.#last;
    const { promise, resolve } = createDeferred();
    this.#last = promise;
    await before;
    try {
      return await this.#call(task, args, seconds);
    } finally {
      resolve();
    }
  }

  /** Terminates the process. */
  close(): void {
    this.#end(new UntrustedError({ state: "it is closed" }));
    this.#child.kill("SIGKILL");
  }

  async #call(
    task: Task,
    args: readonly unknown[],
    seconds: number,
  ): Promise<unknown> {
    if (this.#ended) throw this.#ended;
    const child = this.#child;
    child.ref();
    child.channel?.ref();
    const clock = createClock(child.pid);
    let timer: NodeJS.Timeout | undefined;
    try {
      const { value, error } = await new Promise<Answer>((answer, fail) => {
        this.#pending = { answer, fail };
        timer = setInterval(() => {
          const { cpu, wall } = clock();
          if (Math.max(cpu, wall / PATIENCE) <= seconds) return;
          this.#end(
            new UntrustedError({
              state: `it takes more than ${seconds} s`,
            }),
          );
          child.kill("SIGKILL");
        }, LOOK_MS);
        child.send({ task, args }, (error) => {
          if (error) this.#end(exitError(null, null, this.#memory));
        });
      });
      if (error !== undefined) throw new UntrustedError({ state: error });
      return value;
    } finally {
      clearInterval(timer);
      this.#pending = undefined;
      this.#idle();
    }
  }

  /** An idle sandbox does not keep the process alive. */
  #idle(): void {
    this.#child.unref();
    this.#child.channel?.unref();
  }

  #end(error: Error): void {
    this.#ended ??= error;
    this.#pending?.fail(this.#ended);
  }
}

function exitError(
  code: number | null,
  signal: NodeJS.Signals | null,
  memory: number,
): UntrustedError {
  // V8 aborts; the system kills the process if it has no memory.
  const killed = code === null || signal !== null || code >= 128;
  return new UntrustedError({
    state: killed
      ? `it takes more than ${memory} MiB of memory`
      : `its process ends with exit code ${code}`,
  });
}

function createDeferred(): { promise: Promise<void>; resolve: () => void } {
  let resolve = () => {};
  const promise = new Promise<void>((done) => resolve = done);
  return { promise, resolve };
}

/**
 * Seconds since now: CPU time of a process (wall-clock time if the system does not report it), and wall-clock time. CPU
 * time counts from the first reading, so that short calls read nothing.
 */
function createClock(
  pid: number | undefined,
): () => { readonly cpu: number; readonly wall: number } {
  const begin = performance.now();
  let start: number | undefined;
  return () => {
    const wall = (performance.now() - begin) / 1000;
    const now = cpuSeconds(pid);
    start ??= now;
    const cpu = start === undefined || now === undefined ? wall : now - start;
    return { cpu, wall };
  };
}

/** CPU time of a process so far, if the system reports it. */
function cpuSeconds(pid: number | undefined): number | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return (Number(fields[11]) + Number(fields[12])) * TICK_MS / 1000;
  } catch {
    return undefined;
  }
}
