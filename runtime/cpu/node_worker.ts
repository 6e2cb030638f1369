/** Worker threads of Node and Deno. */

import { readFileSync } from "node:fs";
import { Worker } from "node:worker_threads";
import { MachineError } from "../../spec/errors.ts";
import type { PoolWorker, StartWorker, WorkerEvents } from "./pool.ts";

/** Address space that the first thread takes of V8, and that each takes, with some to spare. */
const FIRST_BYTES = 2 ** 30, THREAD_BYTES = 2 ** 27;

/**
 * Starts the threads of a pool. Where the process may not have the address space that they take, V8 would end it without a
 * sentence: then the first one throws a MachineError.
 */
export function startNodeWorkers(threads: number): StartWorker {
  let started = 0;
  return (program, on) => {
    const wanted = FIRST_BYTES + threads * THREAD_BYTES;
    if (started++ === 0 && addressSpaceLeft() < wanted) {
      throw new MachineError(
        `Cannot start ${threads} thread${
          threads === 1 ? "" : "s"
        } for the CPU device: the system gives them no address space. Raise the limit (ulimit -v)`,
      );
    }
    return startNodeWorker(program, on);
  };
}

/** Bytes of address space that this process may still take, where the system tells. */
function addressSpaceLeft(): number {
  const read = (file: string, field: RegExp) =>
    Number(field.exec(readFileSync(`/proc/self/${file}`, "utf8"))?.[1]);
  try {
    const most = read("limits", /^Max address space +(\d+)/m);
    const taken = read("status", /^VmSize:\s+(\d+) kB/m) * 1024;
    return Number.isNaN(most) ? Infinity : most - taken;
  } catch {
    return Infinity;
  }
}

/** Start a thread, which keeps the process alive only where it is held. */
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
