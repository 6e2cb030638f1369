/** Starts threads that encode rows for `quantize`. */

import { Worker } from "node:worker_threads";
import type { Encoded, Encoder, EncodeTask } from "../engine/mod.ts";
import { MachineError } from "../spec/errors.ts";
import { RUNNING_ROOT } from "../spec/running.ts";

/** An encoder that uses threads. */
export interface EncodeThreads extends Encoder {
  close(): Promise<void>;
}

/** A task that waits for a thread, or for its result. */
interface Waiting {
  readonly task: EncodeTask;
  resolve(encoded: Encoded): void;
  reject(error: Error): void;
}

/** Starts threads. If one fails, all tasks reject with a MachineError. */
export function startEncodeThreads(count: number): EncodeThreads {
  const queue: Waiting[] = [];
  const running = new Map<Worker, Waiting>();
  let failure: Error | undefined;
  const fail = (reason: string) => {
    failure ??= new MachineError(
      `Cannot quantize: a thread has ended (${reason}). Use --threads 1`,
    );
    for (const { reject } of [...running.values(), ...queue]) reject(failure);
    running.clear();
    queue.length = 0;
  };
  const startNext = (worker: Worker) => {
    const next = queue.shift();
    if (next === undefined) return;
    running.set(worker, next);
    worker.postMessage(next.task, [next.task.values.buffer as ArrayBuffer]);
  };
  const workers = Array.from({ length: count }, () => {
    const worker = new Worker(new URL("cli/encode_program.js", RUNNING_ROOT), {
      execArgv: [],
    });
    worker.on("message", (encoded: Encoded) => {
      running.get(worker)?.resolve(encoded);
      running.delete(worker);
      startNext(worker);
    });
    worker.on("error", ({ message }) => fail(message));
    worker.on("exit", (code) => fail(`exit ${code}`));
    return worker;
  });
  return {
    // While a thread encodes, the rows of its next task are read.
    atOnce: 2 * count,
    encode: (task) =>
      new Promise((resolve, reject) => {
        if (failure) return reject(failure);
        queue.push({ task, resolve, reject });
        const idle = workers.find((worker) => !running.has(worker));
        if (idle) startNext(idle);
      }),
    close: async () => {
      await Promise.all(workers.map((worker) => worker.terminate()));
    },
  };
}
