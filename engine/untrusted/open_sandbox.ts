/** A sandbox in which a file is open. If a call ends its process, the next call starts another one. */

import { Sandbox, type Task } from "./sandbox.ts";

/** A task and its arguments. */
export type Call = readonly [Task, ...unknown[]];

/** How the file is opened in a process. */
export interface OpenSandboxOptions {
  /** MiB that the process may use. */
  readonly memory: number;
  readonly open: Call;
  /** Seconds of CPU time to open it. */
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

  /** Calls a task, within `seconds` of CPU time. Throws UntrustedError if it fails or exceeds its bounds. */
  async call([task, ...args]: Call, seconds?: number): Promise<unknown> {
    return await this.#next(async () =>
      await (await this.#opened()).call(task, args, seconds)
    );
  }

  /** Ends the process for good. */
  close(): void {
    this.#closed = true;
    this.#sandbox?.close();
  }

  /** A call that waits need not fail with the one before it. */
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
