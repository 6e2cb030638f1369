/**
 * The bubble of pipeline schedules on four processes of every installed MPI, against that of the plan. Kernels are
 * replaced by waits of their predicted times, so that processes need no core each. Flags: `--micro-batches N` (default
 * 8), `--ms N` (the mean time of a stage per micro-batch, default 8000), `--out FILE` (JSON).
 */

import { spawnSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { launcherArguments } from "../cli/launch/mpi_launcher.ts";
import { SCHEDULE_NAMES } from "../spec/schedule.ts";
import { LAUNCHERS } from "../test/helpers/mpi.ts";
import { machine } from "./measure.ts";
import type { MeasuredBubble } from "./pipeline/rank.ts";

const flags = parseArgs({
  options: {
    "micro-batches": { type: "string", default: "8" },
    ms: { type: "string", default: "8000" },
    out: { type: "string" },
  },
}).values;

/** Runs a program of this folder. */
const RUN = fileURLToPath(new URL("../scripts/run.mjs", import.meta.url));
const RANK = fileURLToPath(new URL("pipeline/rank.ts", import.meta.url));

const rows: (MeasuredBubble & {
  readonly mpi: string;
  readonly schedule: string;
})[] = [];
console.log(
  `${machine()}; 4 processes, ${flags["micro-batches"]} micro-batches`,
);
for (const { name, command, family, skip } of LAUNCHERS) {
  if (skip) {
    console.log(skip);
    continue;
  }
  const root = process.getuid?.() === 0;
  const { stdout, stderr, status } = spawnSync(command!, [
    ...launcherArguments(family, { ranks: 4, root }),
    ...[process.execPath, RUN, RANK, flags["micro-batches"], flags.ms],
    ...SCHEDULE_NAMES,
  ], { encoding: "utf8", timeout: 1_200_000 });
  if (status !== 0) throw new Error(`${RANK} failed: ${stderr}`);
  const found = JSON.parse(stdout) as readonly MeasuredBubble[];
  for (const [i, one] of found.entries()) {
    const schedule = SCHEDULE_NAMES[i]!;
    rows.push({ mpi: name, schedule, ...one });
    const { measured, predicted, planned, equal } = one;
    const percent = (part: number) => `${(100 * part).toFixed(1)} %`;
    console.log(
      `${name}, ${schedule}: measured ${percent(measured)}, predicted ${
        percent(predicted)
      }, planned ${percent(planned)}, of equal stages ${percent(equal)}`,
    );
  }
}
if (flags.out !== undefined) {
  const result = {
    machine: machine(),
    microBatches: Number(flags["micro-batches"]),
    ms: Number(flags.ms),
    rows,
  };
  writeFileSync(flags.out, `${JSON.stringify(result, undefined, 2)}\n`);
}
