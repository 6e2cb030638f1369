/** A sandbox with an open file. If a call ends its process, the next call starts another one. */

import { Sandbox, type Task } from "./sandbox.ts";

/** A task and its arguments. */
export type Call = readonly [Task, ...unknown[]];

/** Options of opening the file in a process. */
export interface OpenSandboxOptions {
  /** Memory limit of the process in MiB. */
  readonly memory: number;
  readonly open: Call;
  /** CPU seconds to open it. */
  readonly seconds?: number;
}

/** Executes calls, one after another. */
export class OpenSandbox {
  readonly #options: OpenSandboxOptions;
  #sandbox: Sandbox | undefined;
  #last: Promise<unknown> = Promise.resolve();
  #closed = false;

  constructor(options: OpenSandboxOptions) {
    this.#options = options;
  }

  /** Opens the file, unless it is open. Throws UntrustedError. */
  async open(): Promise<void> {
    await this.#next(() => this.#opened());
  }

  /** Calls a task with a limit of `seconds` of CPU time. Throws UntrustedError if it fails or exceeds its limits. */
  async call([task, ...args]: Call, seconds?: number): Promise<unknown> {
    return await this.#next(async () =>
      await (await this.#opened()).call(task, args, seconds)
    );
  }

  /** Terminates the process. The next call starts another one. */
  restart(): void {
    this.#sandbox?.close();
  }

  /** Terminates the process permanently. */
  close(): void {
    this.#closed = true;
    this.#sandbox?.close();
  }

  /** A queued call need not fail with the previous one. */
  #next<R>(action: () => Promise<R>): Promise<R> {
    const result = this.#last.then(action);
    this.#last = result.catch(() => {});
    return result;
  }

  async #opened(): Promise<Sandbox> {
    const known = this.#sandbox;
    if (known && (this.#closed || !known.ended)) return known;
    const { memory, open: [task, ...args], seconds } = this.#options;
    const sandbox = new Sandbox({ memory });
    this.#sandbox = sandbox;
    try {
      await sandbox.call(task, args, seconds);
    } catch (error) {
      sandbox.close();
      throw error;
    }
    return sandbox;
  }
}
