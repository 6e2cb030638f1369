/** The program of a thread that takes tasks of a search. */

import { parentPort } from "node:worker_threads";
import { helpSearch, knownOf } from "../engine/mod.ts";
import { searchTask } from "./commands/search.ts";
import { processIo } from "./io.ts";
import type {
  SearchAnswer,
  SearchRequest,
  SearchStart,
} from "./search_thread.ts";

const port = parentPort!;
port.once("message", (start: SearchStart) => {
  const search = searchTask(processIo(), start)
    .then(async (task) => ({ task, known: await knownOf(task) }));
  port.on("message", async ({ number, batch }: SearchRequest) => {
    const { task, known } = await search;
    const results = await helpSearch(task, { known, batch });
    const answer: SearchAnswer = { number, results };
    port.postMessage(answer);
  });
});
