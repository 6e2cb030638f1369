/**
 * All-to-all between processes: the communicator against MPI called from C on the same sizes, for every installed MPI.
 * Flags: `--ranks 2,4`, `--runs N` (of each program, interleaved; default 5), `--sizes BYTES,…`, `--adapter NUMBER`
 * (also a GPU's mapped memory), `--out FILE` (JSON). The C program needs `mpicc`.
 */

import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { launcherArguments } from "../cli/launch/mpi_launcher.ts";
import { type Launcher, LAUNCHERS } from "../test/helpers/mpi.ts";
import { machine, median } from "./measure.ts";

const flags = parseArgs({
  options: {
    ranks: { type: "string", default: "2,4" },
    runs: { type: "string", default: "5" },
    sizes: {
      type: "string",
      default: Array.from({ length: 8 }, (_, i) => 4096 * 4 ** i).join(),
    },
    adapter: { type: "string" },
    out: { type: "string" },
  },
}).values;
const sizes = flags.sizes.split(",");
const runs = Number(flags.runs);

/** The goal: from this size on, the communicator reaches this fraction of C's bandwidth. */
const GOAL = { bytes: 1 << 20, share: 0.8 };

/** The output of a program for one size. Times are in ms per call, by batch. */
interface Line {
  readonly bytes: number;
  readonly alltoallv?: readonly number[];
  readonly ialltoallv?: readonly number[];
  readonly exchange?: readonly number[];
  readonly copiesPerByte?: number;
  readonly device?: string;
}

/** Milliseconds per call, over all batches of all runs. */
interface Times {
  readonly median: number;
  readonly min: number;
}

/** One size on one MPI. */
interface Row {
  readonly mpi: string;
  readonly ranks: number;
  readonly bytes: number;
  readonly device: string;
  readonly alltoallv?: Times;
  readonly ialltoallv?: Times;
  readonly exchange: Times;
  /** Bandwidth of a rank, in GB/s. */
  readonly bandwidth: number;
  /** Fraction of the bandwidth of the faster call from C. */
  readonly share?: Times;
  /** Copies by the host per byte of payload, without the library's own copies. */
  readonly copiesPerByte: number;
}

/** Runs a program of this folder. */
const RUN = fileURLToPath(new URL("../scripts/run.mjs", import.meta.url));

function fileOf(name: string): string {
  return fileURLToPath(new URL(`all_to_all/${name}`, import.meta.url));
}

/** Compiles the C program for an MPI family. Undefined if there is no compiler for it. */
function compileRaw(
  { command, name }: Launcher,
  folder: string,
): string | undefined {
  const compiler = command!.replace("mpirun", "mpicc");
  const program = join(folder, `raw_${name.replace(/\W/g, "")}`);
  const { status } = spawnSync(
    compiler,
    ["-O2", fileOf("raw.c"), "-o", program],
    { stdio: "ignore" },
  );
  if (status === 0) return program;
  console.log(
    `${name}: the C program is left out, '${compiler}' could not compile it`,
  );
  return undefined;
}

function runRanks(
  { command, family }: Launcher,
  ranks: number,
  program: readonly string[],
): Line[] {
  const root = process.getuid?.() === 0;
  const { stdout, stderr, status } = spawnSync(command!, [
    ...launcherArguments(family, { ranks, root }),
    ...program,
  ], { encoding: "utf8", timeout: 600_000 });
  if (status !== 0) throw new Error(`${program[0]} failed: ${stderr}`);
  return stdout.trim().split("\n").map((line) => JSON.parse(line) as Line);
}

function measure(
  launcher: Launcher,
  ranks: number,
  programs: { readonly raw: string | undefined; readonly device: string },
): Row[] {
  const { raw, device } = programs;
  const rank = [process.execPath, RUN, fileOf("rank.ts"), device];
  const lines: Line[] = [];
  for (let run = 0; run < runs; run++) {
    if (raw) lines.push(...runRanks(launcher, ranks, [raw, ...sizes]));
    lines.push(...runRanks(launcher, ranks, [...rank, ...sizes]));
  }
  return sizes.map(Number).map((bytes) => {
    const ofSize = lines.filter((line) => line.bytes === bytes);
    const times = (call: "alltoallv" | "ialltoallv" | "exchange"): Times => {
      const all = ofSize.flatMap((line) => line[call] ?? []);
      return { median: median(all), min: Math.min(...all) };
    };
    const exchange = times("exchange");
    const row = {
      mpi: launcher.name,
      ranks,
      bytes,
      device: ofSize.find((line) => line.device)!.device!,
      exchange,
      bandwidth: bytes * ranks / exchange.median / 1e6,
      copiesPerByte: Math.max(...ofSize.map((line) => line.copiesPerByte ?? 0)),
    };
    if (!raw) return row;
    const [alltoallv, ialltoallv] = [times("alltoallv"), times("ialltoallv")];
    const share = (which: keyof Times) =>
      Math.min(alltoallv[which], ialltoallv[which]) / exchange[which];
    return {
      ...row,
      alltoallv,
      ialltoallv,
      share: { median: share("median"), min: share("min") },
    };
  });
}

function show({ bytes, exchange, bandwidth, ...row }: Row): string {
  const ms = (times: Times | undefined) =>
    (times === undefined ? "-" : times.median.toFixed(3)).padStart(10);
  return [
    `${bytes / 1024} KiB`.padStart(9),
    ms(row.alltoallv),
    ms(row.ialltoallv),
    ms(exchange),
    `${bandwidth.toFixed(2)} GB/s`.padStart(11),
    row.share === undefined
      ? ""
      : `${row.share.median.toFixed(2)} (${row.share.min.toFixed(2)}) of C`,
    row.share && bytes >= GOAL.bytes && row.share.median < GOAL.share
      ? "below the goal"
      : "",
  ].join(" ").trimEnd();
}

const folder = mkdtempSync(join(tmpdir(), "switchyard-all-to-all-"));
const rows: Row[] = [];
console.log(
  `${machine()}; ms a call, medians of 5 batches in each of ${runs} runs; GB/s of a rank, its own block included; in brackets by the shortest time`,
);
try {
  for (const launcher of LAUNCHERS) {
    if (launcher.skip) {
      console.log(launcher.skip);
      continue;
    }
    const raw = compileRaw(launcher, folder);
    for (const ranks of flags.ranks.split(",").map(Number)) {
      for (const device of ["cpu", ...flags.adapter ? [flags.adapter] : []]) {
        const measured = measure(launcher, ranks, { raw, device });
        rows.push(...measured);
        const { device: name, copiesPerByte } = measured[0]!;
        console.log(
          `${launcher.name}, ${ranks} ranks, ${name}: ${copiesPerByte} copies by the host per payload byte`,
        );
        console.log(" per pair  Alltoallv Ialltoallv   exchange");
        for (const row of measured) console.log(show(row));
      }
    }
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}
if (flags.out !== undefined) {
  const result = { machine: machine(), runs, goal: GOAL, rows };
  writeFileSync(flags.out, `${JSON.stringify(result, undefined, 2)}\n`);
}
