/** Starts a thread that takes tasks of a search. */

import { Worker } from "node:worker_threads";
import type {
  ClaimedResults,
  SearchBatch,
  SearchHelper,
} from "../engine/mod.ts";
import type { Machine } from "../spec/mod.ts";
import { RUNNING_ROOT } from "../spec/running.ts";
import type { SearchFlags } from "./commands/search.ts";

/** The search of a thread: its first message. */
export interface SearchStart {
  readonly model: string;
  readonly flags: SearchFlags;
  /** The machine of `--target`, which is measured once for all threads. */
  readonly machine: Machine;
}

/** A batch of tasks. */
export interface SearchRequest {
  readonly number: number;
  readonly batch: SearchBatch;
}

/** The results of the request with this number. */
export interface SearchAnswer {
  readonly number: number;
  readonly results: ClaimedResults;
}

/** A helper that is a thread. */
export interface SearchThread extends SearchHelper {
  /** Tells the thread its search. */
  begin(start: SearchStart): void;
  close(): void;
}

/** Starts the thread, which loads its modules. If it fails, it has no results, and the caller executes the tasks. */
export function startSearchThread(): SearchThread {
  const worker = new Worker(new URL("cli/search_program.js", RUNNING_ROOT), {
    execArgv: [],
    stdout: true,
    stderr: true,
  });
  const failed = new Promise<[]>((resolve) => {
    for (const event of ["error", "exit"]) worker.on(event, () => resolve([]));
  });
  let count = 0;
  return {
    begin: (start) => worker.postMessage(start),
    help: async (batch) => {
      const number = count++;
      const done = new Promise<ClaimedResults>((resolve) => {
        worker.on("message", (answer: SearchAnswer) => {
          if (answer.number === number) resolve(answer.results);
        });
      });
      const request: SearchRequest = { number, batch };
      worker.postMessage(request);
      return await Promise.race([done, failed]);
    },
    close: () => void worker.terminate(),
  };
}
