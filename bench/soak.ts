/**
 * Injects every kind of rank failure repeatedly, for every installed MPI. Checks that the job ends in time, with the
 * right message and exit code, and leaves nothing behind. Flags: `--runs N` (of each fault; default 20), `--only TEXT`
 * (faults with TEXT in their names), `--out FILE` (default `bench/results/soak.json`).
 */

import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { FAULTS, makeFault, prepareFaults } from "../test/helpers/faults.ts";
import { LAUNCHERS } from "../test/helpers/mpi.ts";
import { machine, median } from "./measure.ts";
import { writeDocument } from "./results.ts";

const { runs, only, out } = parseArgs({
  options: {
    runs: { type: "string", default: "20" },
    only: { type: "string", default: "" },
    out: {
      type: "string",
      default: fileURLToPath(new URL("results/soak.json", import.meta.url)),
    },
  },
}).values;

/** One fault on one MPI. */
interface Row {
  readonly mpi: string;
  readonly fault: string;
  readonly runs: number;
  readonly passed: number;
  /** Time from the fault to the end of `launch`, if the time of the fault is known. */
  readonly seconds?: { readonly median: number; readonly max: number };
  readonly problems: readonly string[];
}

/** Maximum seconds from a fault to the end of the job, besides the waiting time of ranks for the failed one. */
const MAX_SECONDS = 10;

/** Returns the files in shared memory. */
function sharedMemory(): Set<string> {
  return new Set(readdirSync("/dev/shm"));
}

const scratch = mkdtempSync(path.join(tmpdir(), "switchyard-soak-"));
const before = sharedMemory();
const rows: Row[] = [];
try {
  await prepareFaults(scratch);
  for (const launcher of LAUNCHERS) {
    if (launcher.skip) {
      console.log(`${launcher.name}: skipped, ${launcher.skip}`);
      continue;
    }
    for (const fault of FAULTS.filter(({ name }) => name.includes(only))) {
      const problems: string[] = [];
      const seconds: number[] = [];
      let passed = 0;
      for (let run = 0; run < Number(runs); run++) {
        const result = await makeFault(launcher, scratch, fault);
        if (result.seconds !== undefined) seconds.push(result.seconds);
        const late =
          (result.seconds ?? 0) > MAX_SECONDS + (fault.deadline ?? 0);
        if (late) problems.push(`it took ${result.seconds} s`);
        if (result.problems.length === 0 && !late) passed++;
        problems.push(...result.problems);
      }
      const row = {
        mpi: launcher.name,
        fault: fault.name,
        runs: Number(runs),
        passed,
        ...seconds.length > 0
          ? { seconds: { median: median(seconds), max: Math.max(...seconds) } }
          : {},
        problems,
      };
      rows.push(row);
      console.log(
        `${row.mpi}: ${row.fault}: ${passed} of ${runs}${
          row.seconds ? `, ${row.seconds.max.toFixed(1)} s at most` : ""
        }`,
      );
      for (const problem of problems) console.log(`  ${problem}`);
    }
  }
} finally {
  rmSync(scratch, { recursive: true, force: true });
}
const left = [...sharedMemory()].filter((name) => !before.has(name));
writeDocument(out, { machine: machine(), rows, leftInSharedMemory: left });
if (left.length > 0) console.log(`left in shared memory: ${left.join(", ")}`);
const good = left.length === 0 && rows.length > 0 &&
  rows.every(({ passed, runs }) => passed === runs);
process.exitCode = good ? 0 : 1;
