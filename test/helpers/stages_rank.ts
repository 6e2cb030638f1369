/**
 * Rank of an MPI job that runs inference and training on pipeline stages: `stages_rank.ts CELLS`, a JSON file of
 * `StageCell`s. Rank 0 prints the results of all ranks for each cell as JSON.
 */

import { readFileSync } from "node:fs";
import process from "node:process";
import { openWorld } from "../../runtime/mpi/mod.ts";
import {
  outputsOn,
  type StageCell,
  type StageResult,
  trainOn,
} from "./stage_cells.ts";

const world = await openWorld();
const [list = ""] = process.argv.slice(2);
const results: StageResult[][] = [];
for (const cell of JSON.parse(readFileSync(list, "utf8")) as StageCell[]) {
  const result: StageResult = {
    outputs: await outputsOn(cell, "mpi"),
    memory: await trainOn(cell, "mpi"),
  };
  const all = await world.gatherTexts(JSON.stringify(result), {
    what: "a cell",
  });
  results.push(all.map((text) => JSON.parse(text) as StageResult));
}
if (world.rank === 0) console.log(JSON.stringify(results));
await world.finish();
