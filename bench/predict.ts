/**
 * Predicted against measured step and exchange times at ep=1, 2 and 4: the machine is measured, then predicted from, then
 * run. Ranks on one device and on devices of their own, on the CPU and with `--adapter NUMBER` (default 0, where there is
 * one) on an adapter, and as processes through every MPI that is installed. `--ranks 1,2,4`, `--rounds N` (default 15), each
 * with `--runs N` (default 2) of every step, `--only shared|separate|mpi`, `--out FILE` (JSON). What counts is the median of
 * the rounds' ratios: a prediction is compared with steps that ran right after the machine was measured. Rounds are short,
 * some seconds, since a machine that others share drifts; how far what was measured moves from round to round is told too.
 */

import { spawnSync } from "node:child_process";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { launcherArguments } from "../cli/mpi_launcher.ts";
import { listAdapters } from "../runtime/mod.ts";
import type { Machine } from "../spec/mod.ts";
import { LAUNCHERS } from "../test/helpers/mpi.ts";
import { machine, median } from "./measure.ts";
import { writeDocument } from "./results.ts";
import type { Compared } from "./predict/rank.ts";

const flags = parseArgs({
  options: {
    adapter: { type: "string", default: "0" },
    ranks: { type: "string", default: "1,2,4" },
    runs: { type: "string", default: "2" },
    rounds: { type: "string", default: "15" },
    only: { type: "string" },
    out: { type: "string" },
  },
}).values;

/** Runs a program of this folder. */
const RUN = fileURLToPath(new URL("../scripts/run.mjs", import.meta.url));
const RANK = fileURLToPath(new URL("predict/rank.ts", import.meta.url));
/** A prediction is held to this, either way. */
const WITHIN = 1.25;

interface Result {
  readonly machine: Machine;
  readonly compared: readonly Compared[];
}

function run(
  launcher: readonly string[],
  [sharing, adapter, ranks]: readonly string[],
): Result[] {
  const program = [
    ...[process.execPath, RUN, RANK],
    ...[sharing!, adapter!, ranks!, flags.runs, flags.rounds],
  ];
  const [command, ...args] = [...launcher, ...program];
  const { stdout, stderr, status } = spawnSync(command!, args, {
    encoding: "utf8",
    timeout: 1_200_000,
  });
  if (status !== 0) throw new Error(`${RANK} failed: ${stderr}`);
  return JSON.parse(stdout) as Result[];
}

/** A time of a step, by the medians of all rounds; the ratio is the median of theirs. */
interface Summary {
  readonly predicted: number;
  readonly measured: number;
  readonly ratio: number;
  readonly ratios: readonly number[];
  /** What each round measured: no prediction can be nearer than these are to each other. */
  readonly rounds: readonly number[];
}

/** What is written. */
interface Row {
  readonly where: string;
  readonly work: string;
  readonly ranks: number;
  readonly step: Summary;
  readonly exchange?: Summary;
}

const rows: Row[] = [];
/** What each round predicted from. */
const machines: { [where: string]: readonly Machine[] } = {};

function show(where: string, rounds: readonly Result[]): void {
  machines[where] = rounds.map(({ machine }) => machine);
  for (const [i, { work, ranks }] of rounds[0]!.compared.entries()) {
    const of = (part: "step" | "exchange") =>
      summarise(rounds.map(({ compared }) => compared[i]![part]));
    const row: Row = {
      ...{ where, work, ranks, step: of("step") },
      ...ranks > 1 ? { exchange: of("exchange") } : {},
    };
    rows.push(row);
    const parts = [
      describe("step", row.step),
      ...row.exchange ? [describe("exchange", row.exchange)] : [],
    ];
    console.log(`${where}, ${work}, ep=${ranks}: ${parts.join("; ")}`);
  }
}

function summarise(rounds: readonly Compared["step"][]): Summary {
  const ratios = rounds.map(({ predicted, measured }) => predicted / measured);
  return {
    predicted: median(rounds.map(({ predicted }) => predicted)),
    measured: median(rounds.map(({ measured }) => measured)),
    ratio: median(ratios),
    ratios,
    rounds: rounds.map(({ measured }) => measured),
  };
}

function describe(
  what: string,
  { predicted, measured, ratio, ratios, rounds }: Summary,
): string {
  const off = isWithin(ratio) ? "" : ", off";
  return `${what} ${predicted.toFixed(3)} ms predicted, ${
    measured.toFixed(3)
  } measured (${rangeOf(rounds, 3)}), ratio ${ratio.toFixed(2)} (${
    rangeOf(ratios, 2)
  })${off}`;
}

function rangeOf(values: readonly number[], digits: number): string {
  return [Math.min(...values), Math.max(...values)]
    .map((value) => value.toFixed(digits)).join(" to ");
}

function isWithin(ratio: number): boolean {
  return ratio <= WITHIN && ratio >= 1 / WITHIN;
}

/**
 * How much of all is within the goal, by the middle of the rounds and by single ones; and how often what a round measured is
 * within it of what the round before measured of the very same: a prediction cannot be expected to say more.
 */
function tellAll(what: string, all: readonly Summary[]): void {
  const share = (ratios: readonly number[]) =>
    `${ratios.filter(isWithin).length} of ${ratios.length}`;
  const again = all.flatMap(({ rounds }) =>
    rounds.slice(1).map((ms, i) => rounds[i]! / ms)
  );
  console.log(
    `${what} within the goal: ${
      share(all.map(({ ratio }) => ratio))
    }; in single rounds ${
      share(all.flatMap(({ ratios }) => ratios))
    }; measured in the round before against measured, ${share(again)}`,
  );
}

console.log(machine());
const adapters = ["cpu"];
if ((await listAdapters())[Number(flags.adapter)]) adapters.push(flags.adapter);
else console.log(`there is no adapter ${flags.adapter}`);
for (const sharing of ["shared", "separate"]) {
  if ((flags.only ?? sharing) !== sharing) continue;
  for (const adapter of adapters) {
    const device = adapter === "cpu" ? "CPU device" : `adapter ${adapter}`;
    show(`${device}, ${sharing}`, run([], [sharing, adapter, flags.ranks]));
  }
}
for (const { name, command, family, skip } of LAUNCHERS) {
  if ((flags.only ?? "mpi") !== "mpi") continue;
  if (skip) {
    console.log(skip);
    continue;
  }
  for (const count of flags.ranks.split(",")) {
    const root = process.getuid?.() === 0;
    const launcher = launcherArguments(family, { ranks: Number(count), root });
    const result = run([command!, ...launcher], ["mpi", "cpu", count]);
    show(`CPU device, ${name}`, result);
  }
}
tellAll("steps", rows.map(({ step }) => step));
tellAll("exchanges", rows.flatMap(({ exchange }) => exchange ?? []));
if (flags.out !== undefined) {
  writeDocument(flags.out, { machine: machine(), rows, machines });
}
process.exit(0);
