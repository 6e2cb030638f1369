/**
 * Rank of an MPI job that runs several plans in order: `run_rank.ts CASES`, a JSON file of `RankCase`s. Equivalent to
 * `switchyard run` for each, without new processes.
 */

import { readFileSync } from "node:fs";
import process from "node:process";
import { nodeFiles } from "../../cli/files.ts";
import {
  loadTarget,
  openTarget,
  readTensors,
  runOpened,
  writeSafetensors,
} from "../../engine/mod.ts";
import { openWorld } from "../../runtime/mpi/mod.ts";

/** Paths of a plan, its operands and its outputs. */
export interface RankCase {
  readonly plan: string;
  readonly weights: string;
  readonly inputs: string;
  readonly outputs: string;
}

const files = nodeFiles();
const [list = ""] = process.argv.slice(2);
for (const one of JSON.parse(readFileSync(list, "utf8")) as RankCase[]) {
  const target = await loadTarget(one.plan, files);
  const inputs = await readTensors(one.inputs, files);
  const opened = await openTarget(target, files, {
    allowKernels: true,
    sharing: "mpi",
    adapter: "cpu",
    check: true,
    weights: one.weights,
  });
  const outputs = await runOpened(opened, inputs);
  if (opened.rank === 0) {
    await files.write(one.outputs, [writeSafetensors(outputs)]);
  }
  await opened.close();
}
await (await openWorld()).finish();
