/**
 * `npm run -s fuzz -- [--class NAME] [--count N] [--seed S] [--minutes M] [--out FOLDER]` fuzzes one class, or all in
 * order with equal shares of the minutes. `npm run -s fuzz -- --again FILE` reruns the case of a finding. Exits with 1
 * if there are findings.
 */

import { mkdir, readFile, writeFile } from "node:fs/promises";
import path from "node:path";
import process from "node:process";
import { Command, InvalidArgumentError } from "commander";
import { CLASSES } from "./classes.ts";
import { type Found, fuzz, type FuzzClass, reportText } from "./fuzz.ts";

interface Flags {
  readonly class?: string;
  readonly count?: number;
  readonly seed?: number;
  readonly minutes?: number;
  readonly out: string;
  readonly again?: string;
}

/** A finding on disk. */
interface Saved {
  readonly class: string;
  readonly seed: number;
  readonly message: string;
  readonly case: unknown;
}

function numberFrom(min: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (text.trim() !== "" && Number.isFinite(value) && value >= min) {
      return value;
    }
    throw new InvalidArgumentError(`Give a number of at least ${min}.`);
  };
}

function classOf(name: string): () => FuzzClass<unknown> {
  const found = Object.hasOwn(CLASSES, name) ? CLASSES[name] : undefined;
  if (found) return found;
  const known = Object.keys(CLASSES).map((known) => `'${known}'`).join(", ");
  throw new InvalidArgumentError(`The classes are ${known}.`);
}

const flags = new Command("npm run -s fuzz --")
  .description("Draw cases from a seed and judge them")
  .option(
    "--class <name>",
    "the class. Default: all, in order",
    (name) => {
      classOf(name);
      return name;
    },
  )
  .option(
    "--count <n>",
    "number of cases. Default: that of the class",
    numberFrom(1),
  )
  .option("--seed <n>", "the seed. Default: random", numberFrom(-0x80000000))
  .option(
    "--minutes <n>",
    "total time, shared equally by the classes",
    numberFrom(0),
  )
  .option("--out <folder>", "folder for findings", "fuzz-findings")
  .option("--again <file>", "rerun the case of a finding")
  .parse().opts<Flags>();

process.exitCode =
  await (flags.again === undefined ? fuzzAll(flags) : rejudge(flags.again));

async function fuzzAll(flags: Flags): Promise<number> {
  const names = flags.class === undefined
    ? Object.keys(CLASSES)
    : [flags.class];
  const seed = (flags.seed ?? crypto.getRandomValues(new Int32Array(1))[0]!) |
    0;
  const minutes = flags.minutes && flags.minutes / names.length;
  let findings = 0;
  for (const name of names) {
    const of = classOf(name)();
    console.log(`${name}: seed ${seed}`);
    const { count } = flags;
    const started = process.cpuUsage();
    const report = await fuzz(of, {
      seed,
      ...count === undefined ? {} : { count },
      ...minutes === undefined ? {} : { minutes },
    });
    const { user, system } = process.cpuUsage(started);
    const seconds = ((user + system) / 1e6).toFixed(0);
    console.log(`${name}: ${reportText(report)} (${seconds} s of CPU)`);
    for (const [i, found] of report.found.entries()) {
      const saved = { class: name, seed, ...found };
      const file = await save(of, saved, path.join(flags.out, `${name}-${i}`));
      console.log(
        `${found.message}\n  npm run -s fuzz -- --again ${file}`,
      );
    }
    findings += report.found.length;
    await of.close();
  }
  return findings > 0 ? 1 : 0;
}

/** Writes a finding and its evidence. Returns the path of the finding. */
async function save(
  of: FuzzClass<unknown>,
  saved: Saved & Found<unknown>,
  start: string,
): Promise<string> {
  await mkdir(path.dirname(start), { recursive: true });
  const evidence = await of.evidence?.(saved.case) ?? {};
  for (const [ending, text] of Object.entries(evidence)) {
    await writeFile(`${start}.${ending}`, text);
  }
  await writeFile(`${start}.json`, `${JSON.stringify(saved, null, 2)}\n`);
  return `${start}.json`;
}

async function rejudge(file: string): Promise<number> {
  const saved = JSON.parse(await readFile(file, "utf8")) as Saved;
  const of = classOf(saved.class)();
  try {
    console.log(`${saved.class}: ${await of.judge(saved.case)}`);
    return 0;
  } catch (error) {
    console.log(error instanceof Error ? error.message : String(error));
    return 1;
  } finally {
    await of.close();
  }
}
