/** The editor's side of tracing: sends requests to a separate process, which cannot block or slow the editor. */

import { type ChildProcess, spawn } from "node:child_process";
import process from "node:process";
import { isDeepStrictEqual } from "node:util";
import type { TraceAnswer, TraceRequest } from "./tracer.ts";

/** Number of traced files after which the process is restarted, because it never unloads modules. */
const FILES = 300;

/** Results for a file, and the texts that they belong to. */
export interface Found extends Omit<TraceAnswer, "id"> {
  readonly texts: ReadonlyMap<string, string>;
}

/** A file to trace. */
export type Asked = Omit<TraceRequest, "id" | "texts"> & {
  readonly texts: ReadonlyMap<string, string>;
};

/** Options of tracing. */
export interface TraceOptions {
  /** The path of the compiled `tracer.ts`. */
  readonly program: string;
  /** Seconds until a file counts as hanging. */
  readonly seconds: number;
  /** Called when there are new results. */
  onFound(): void;
}

/** Traces files, one after another. */
export class TraceClient {
  readonly #options: TraceOptions;
  readonly #found = new Map<string, Found>();
  readonly #waiting = new Map<string, Asked>();
  #child: ChildProcess | undefined;
  #running: { readonly id: number; readonly asked: Asked } | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #id = 0;

  constructor(options: TraceOptions) {
    this.#options = options;
  }

  /** Results of all traced files. Their texts may have changed since. */
  get found(): Iterable<Found> {
    return this.#found.values();
  }

  /** Traces a file unless its texts have not changed. */
  ask(asked: Asked): void {
    const { path, texts } = asked;
    const before = this.#running?.asked.path === path
      ? this.#running.asked
      : this.#found.get(path);
    const last = this.#waiting.get(path) ?? before;
    if (last && isDeepStrictEqual(last.texts, texts)) return;
    this.#waiting.set(path, asked);
    this.#next();
  }

  /** Terminates the process. */
  close(): void {
    clearTimeout(this.#timer);
    this.#child?.kill();
    this.#child = undefined;
    this.#running = undefined;
    this.#waiting.clear();
  }

  #next(): void {
    const [asked] = this.#waiting.values();
    if (this.#running || !asked) return;
    this.#waiting.delete(asked.path);
    const id = ++this.#id;
    this.#running = { id, asked };
    if (id % FILES === 0) this.#end();
    const { seconds } = this.#options;
    this.#timer = setTimeout(() => {
      this.#end();
      this.#answer({
        id,
        values: [],
        mistakes: [{
          message:
            `Cannot trace the model: it takes more than ${seconds} seconds. Make axes or loops smaller`,
          span: { file: asked.path, line: 1, column: 1 },
        }],
      });
    }, seconds * 1000);
    this.#timer.unref?.();
    const { texts, ...rest } = asked;
    this.#start().send({ ...rest, id, texts: [...texts] });
  }

  #start(): ChildProcess {
    if (this.#child) return this.#child;
    const child = spawn(process.execPath, [this.#options.program], {
      stdio: ["ignore", "ignore", "ignore", "ipc"],
      env: { ...process.env, NODE_OPTIONS: "", ELECTRON_RUN_AS_NODE: "1" },
    });
    this.#child = child;
    child.unref();
    child.channel?.unref();
    child.on("message", (answer: TraceAnswer) => this.#answer(answer));
    // If the process exits or cannot be started, a file has no answer.
    const ended = (): void => {
      if (this.#child !== child) return;
      this.#child = undefined;
      const id = this.#running?.id;
      if (id !== undefined) this.#answer({ id, mistakes: [], values: [] });
    };
    child.on("error", ended);
    child.on("exit", ended);
    return child;
  }

  #end(): void {
    const child = this.#child;
    this.#child = undefined;
    child?.kill("SIGKILL");
  }

  #answer({ id, mistakes, values }: TraceAnswer): void {
    if (this.#running?.id !== id) return;
    clearTimeout(this.#timer);
    const { path, texts } = this.#running.asked;
    this.#running = undefined;
    this.#found.set(path, { mistakes, values, texts });
    this.#options.onFound();
    this.#next();
  }
}
