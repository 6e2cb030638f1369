/** Worker threads of Node and Deno. */

import { Worker } from "node:worker_threads";
import type { PoolWorker, WorkerEvents } from "./pool.ts";

/** Start a thread, which keeps the process alive only where it is held. */
export function startNodeWorker(
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
