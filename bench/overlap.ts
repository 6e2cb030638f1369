/**
 * The fraction of an expert layer's transfer time that chunks overlap with computation. It is measured between
 * processes for every installed MPI, and with `--adapter NUMBER` also between devices of one process. Flags: `--ranks
 * 2,4`, `--tokens N` (default 1024), `--chunks 2,4`, `--runs N` (default 9), `--out FILE` (JSON).
 */

import { spawnSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { launcherArguments } from "../cli/launch/mpi_launcher.ts";
import { LAUNCHERS } from "../test/helpers/mpi.ts";
import { describe, machine, median } from "./measure.ts";
import type { Overlapped } from "./overlap/rank.ts";

const flags = parseArgs({
  options: {
    ranks: { type: "string", default: "2,4" },
    tokens: { type: "string", default: "1024" },
    chunks: { type: "string", default: "2,4" },
    runs: { type: "string", default: "9" },
    adapter: { type: "string" },
    out: { type: "string" },
  },
}).values;

/** Runs a program of this folder. */
const RUN = fileURLToPath(new URL("../scripts/run.mjs", import.meta.url));
const RANK = fileURLToPath(new URL("overlap/rank.ts", import.meta.url));

/** Returns the command of the program, with all ranks in one process or as one rank of an MPI job. */
function program(ranksHere: number, device: string): string[] {
  return [
    ...[process.execPath, RUN, RANK, String(ranksHere), device],
    ...[flags.tokens, flags.runs, "1", ...flags.chunks.split(",")],
  ];
}

function run([command, ...args]: readonly string[]): Overlapped {
  const { stdout, stderr, status } = spawnSync(command!, args, {
    encoding: "utf8",
    timeout: 1_200_000,
  });
  if (status !== 0) throw new Error(`${RANK} failed: ${stderr}`);
  return JSON.parse(stdout) as Overlapped;
}

const rows: (Overlapped & { readonly where: string })[] = [];

/** Prints times, and the fraction of transfer time in which the device computed. */
function show(where: string, found: Overlapped): void {
  rows.push({ where, ...found });
  const [unsplit] = found.chunks;
  console.log(`${where}, ${found.device}:`);
  for (const { chunks, runs, transfers, hidden, bytes } of found.chunks) {
    const share = hidden?.map((ms, i) => 100 * ms / transfers[i]!);
    const more = 100 * (bytes / unsplit!.bytes - 1);
    console.log(
      `  ${chunks === 1 ? "whole" : `${chunks} chunks`}: ${
        describe(runs)
      }, transfers ${median(transfers).toFixed(2)} ms${
        share ? `, ${median(share).toFixed(0)} % of them hidden` : ""
      }, ${more < 0 ? "" : "+"}${more.toFixed(1)} % memory`,
    );
  }
}

console.log(`${machine()}; ${flags.tokens} tokens, 512 to 1024, 8 experts`);
for (const ranks of flags.ranks.split(",").map(Number)) {
  for (const { name, command, family, skip } of LAUNCHERS) {
    if (skip) {
      console.log(skip);
      continue;
    }
    const root = process.getuid?.() === 0;
    const found = run([
      command!,
      ...launcherArguments(family, { ranks, root }),
      ...program(0, "cpu"),
    ]);
    show(`${name}, ${ranks} ranks`, found);
  }
  if (flags.adapter !== undefined) {
    const found = run(program(ranks, flags.adapter));
    show(`${ranks} devices of one process`, found);
  }
}
if (flags.out !== undefined) {
  const result = { machine: machine(), tokens: Number(flags.tokens), rows };
  writeFileSync(flags.out, `${JSON.stringify(result, undefined, 2)}\n`);
}
