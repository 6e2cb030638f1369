/** The program of a thread that takes tasks of a search. */

import { parentPort, workerData } from "node:worker_threads";
import { helpSearch, knownOf } from "../engine/mod.ts";
import { searchTask } from "./commands/search.ts";
import { processIo } from "./io.ts";
import type {
  SearchAnswer,
  SearchRequest,
  SearchThreadData,
} from "./search_thread.ts";

const { model, flags } = workerData as SearchThreadData;
const task = await searchTask(processIo(), model, flags);
const known = await knownOf(task);
parentPort!.on("message", ({ number, batch }: SearchRequest) => {
  void helpSearch(task, { known, batch }).then((results) => {
    const answer: SearchAnswer = { number, results };
    parentPort!.postMessage(answer);
  });
});
