/** Worker threads of Node.js and Deno. */

import { readFileSync } from "node:fs";
import { Worker } from "node:worker_threads";
import { MachineError } from "../../spec/errors.ts";
import type { PoolWorker, StartWorker, WorkerEvents } from "./pool.ts";

/** Address space that V8 reserves for the first thread, and for each thread, with a margin. */
const FIRST_BYTES = 2 ** 30, THREAD_BYTES = 2 ** 27;

/**
 * Starts the threads of a pool. If the process is not allowed the address space, V8 would abort without a message; the
 * first thread then throws a MachineError instead.
 */
export function startNodeWorkers(threads: number): StartWorker {
  let started = 0;
  return (program, on) => {
    const wanted = FIRST_BYTES + threads * THREAD_BYTES;
    if (started++ === 0 && addressSpaceLeft() < wanted) {
      throw new MachineError(
        `Cannot start ${threads} thread${
          threads === 1 ? "" : "s"
        } for the CPU device: the system does not provide address space for them. Raise the limit (ulimit -v)`,
      );
    }
    return startNodeWorker(program, on);
  };
}

/** Remaining address space of this process in bytes, if the system reports it. */
function addressSpaceLeft(): number {
  const read = (file: string, field: RegExp) =>
    Number(field.exec(readFileSync(`/proc/self/${file}`, "utf8"))?.[1]);
  try {
    const max = read("limits", /^Max address space +(\d+)/m);
    const taken = read("status", /^VmSize:\s+(\d+) kB/m) * 1024;
    return Number.isNaN(max) ? Infinity : max - taken;
  } catch {
    return Infinity;
  }
}

/** Starts a thread, which keeps the process alive only while it is held. */
function startNodeWorker(
  program: string,
  on: WorkerEvents,
): PoolWorker {
  const worker = new Worker(
    `const port = require("node:worker_threads").parentPort;${program}`,
    { eval: true, execArgv: [] },
  );
  worker.unref();
  worker.on("message", on.message);
  worker.on("error", (error) => on.failure(error.message));
  worker.on("exit", (code) => on.failure(`exit ${code}`));
  return {
    postMessage: (message) => worker.postMessage(message),
    hold: (held) => held ? worker.ref() : worker.unref(),
    terminate: () => worker.terminate(),
  };
}
