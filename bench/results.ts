/** Saved results: a JSON file, a table and a plot per program, in bench/results/. */

import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";
import { machine, median, rateIn } from "./measure.ts";
import { barsSvg } from "./plot.ts";

/** Times of one side, in ms. */
export interface Timing {
  readonly median: number;
  readonly min: number;
  readonly max: number;
  readonly runs: number;
}

/** One piece of work, and the time of each side in interleaved runs. */
export interface Work {
  readonly work: string;
  /** The amount of work, in the units of the printed rate: `multiply-adds times two`, tokens. */
  readonly amount: number;
  readonly unit: "GFLOP/s" | "GB/s" | "tokens/s";
  readonly sides: { readonly [side: string]: Timing };
  /** Difference of each side's results from this project's, relative to the largest value. */
  readonly difference?: { readonly [side: string]: number };
  /** Sides that cannot do this work, with reasons. */
  readonly absent?: { readonly [side: string]: string };
}

/** The measurements of a program. */
export interface Result {
  readonly program: string;
  readonly machine: string;
  readonly adapter: string;
  /** Flags of the measurement besides `--out`. Default: none. */
  readonly flags?: readonly string[];
  readonly versions?: { readonly [name: string]: string };
  readonly works: readonly Work[];
  /** Other measurements. */
  readonly notes?: readonly string[];
  /**
   * Ratios that do not depend on the speed of the machine; larger is better. `npm run bench -- --check` compares them.
   */
  readonly ratios: { readonly [name: string]: number };
}

/** The side of this project. */
export const OURS = "switchyard";

/** Returns the path of a program's saved results. */
export function resultsPath(program: string): string {
  return fileURLToPath(new URL(`results/${program}.json`, import.meta.url));
}

/** Reads the results in a file. */
export function readResult(file: string): Result {
  return JSON.parse(readFileSync(file, "utf8")) as Result;
}

/** Summarizes the times of several runs. */
export function timingOf(times: readonly number[]): Timing {
  return {
    median: round(median(times)),
    min: round(Math.min(...times)),
    max: round(Math.max(...times)),
    runs: times.length,
  };
}

/** Returns the speed ratio of two interleaved sides: the median over pairs. */
export function speedOf(
  ours: readonly number[],
  theirs: readonly number[],
): number {
  return round(median(ours.map((ms, i) => theirs[i]! / ms)));
}

/** Formats a rate per second: `17.1 GFLOP/s`. */
function rateOf(work: Work, ms: number): string {
  const { unit } = work;
  return `${rateIn(work, ms).toFixed(unit === "tokens/s" ? 0 : 1)} ${unit}`;
}

/** Prints a result. If a file is given, saves it with a table and a plot next to it. */
export function report(
  measured: Omit<Result, "machine">,
  file: string | undefined,
): void {
  const { program, adapter, ...rest } = measured;
  const result: Result = { program, machine: machine(), adapter, ...rest };
  const table = tableOf(result);
  console.log(table);
  if (file === undefined) return;
  writeResult(file, result, table);
  writeFileSync(besides(file, "svg"), barsSvg(result));
}

/** Saves a document, and a table next to it. */
export function writeResult(
  file: string,
  document: object,
  table: string,
): void {
  writeDocument(file, document);
  writeFileSync(besides(file, "md"), table);
}

/** Saves only a document. */
export function writeDocument(file: string, document: object): void {
  mkdirSync(dirname(file), { recursive: true });
  writeFileSync(file, JSON.stringify(document, null, 2) + "\n");
}

function besides(file: string, ending: string): string {
  return `${file.replace(/\.json$/, "")}.${ending}`;
}

function tableOf(result: Result): string {
  const lines = [
    `# ${result.program}`,
    "",
    `${result.machine}, ${result.adapter}`,
  ];
  for (const work of result.works) {
    lines.push("", `## ${work.work}`, "");
    const ours = work.sides[OURS]?.median;
    lines.push(
      "| side | median ms | min | max | runs | rate | our speed against it | differs by |",
      "| --- | --- | --- | --- | --- | --- | --- | --- |",
    );
    for (const [side, timing] of Object.entries(work.sides)) {
      const { median, min, max, runs } = timing;
      const ratio = side === OURS || ours === undefined
        ? ""
        : `${result.ratios[ratioName(work, side)] ?? round(median / ours)}`;
      const difference = work.difference?.[side]?.toExponential(1) ?? "";
      const version = result.versions?.[side];
      const cells = [
        version === undefined ? side : `${side} ${version}`,
        ...[median, min, max].map((ms) => ms.toFixed(2)),
        `${runs}`,
        ...[rateOf(work, median), ratio, difference],
      ];
      lines.push(`| ${cells.join(" | ")} |`);
    }
    const absent = Object.entries(work.absent ?? {});
    if (absent.length > 0) lines.push("");
    for (const [side, why] of absent) lines.push(`- ${side}: ${why}`);
  }
  const others = Object.entries(result.ratios).filter(([name]) =>
    !result.works.some((work) =>
      Object.keys(work.sides).some((side) => ratioName(work, side) === name)
    )
  );
  if (others.length > 0) lines.push("");
  for (const [name, ratio] of others) lines.push(`- ${name}: ${ratio}`);
  for (const note of result.notes ?? []) lines.push(`- ${note}`);
  return lines.join("\n") + "\n";
}

/** Returns the name of the ratio between this project's speed and a side's. */
export function ratioName({ work }: Pick<Work, "work">, side: string): string {
  return `${work}: against ${side}`;
}

function round(value: number): number {
  return Number(value.toPrecision(4));
}
