/**
 * CPU seconds of short commands as complete processes, and of `check --watch` per change. `--program FILE` measures an
 * installed `bin/switchyard.mjs`; `--out FILE` saves the figures. Linux only.
 */

import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import {
  copyFileSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { createInterface } from "node:readline";
import { setTimeout } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { machine, median } from "./measure.ts";
import { writeDocument } from "./results.ts";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const REPETITIONS = 9;

const { values: flags } = parseArgs({
  options: {
    program: { type: "string", default: join(ROOT, "bin/switchyard.mjs") },
    out: { type: "string" },
  },
});

/** Returns the CPU seconds of a process, or of its ended children. */
function cpuSeconds(pid: number | "self", of: "own" | "children"): number {
  const text = readFileSync(`/proc/${pid}/stat`, "utf8");
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  const first = of === "own" ? 11 : 13;
  return (Number(fields[first]) + Number(fields[first + 1])) / 100;
}

/** Returns the CPU seconds of one process of the program. */
function secondsOf(argv: readonly string[]): number {
  const before = cpuSeconds("self", "children");
  const { status, stderr } = spawnSync(
    process.execPath,
    [flags.program, ...argv],
    { encoding: "utf8" },
  );
  if (status !== 0) throw new Error(`Cannot measure ${argv[0]}: ${stderr}`);
  return cpuSeconds("self", "children") - before;
}

/** Returns the CPU seconds of several changes of a watched file. Half of them are errors. */
async function secondsOfChanges(file: string): Promise<number[]> {
  const text = readFileSync(file, "utf8");
  const child: ChildProcess = spawn(
    process.execPath,
    [flags.program, "check", file, "--watch", "--json"],
    { stdio: ["ignore", "pipe", "inherit"] },
  );
  const seconds: number[] = [];
  let before = 0;
  for await (const _line of createInterface({ input: child.stdout! })) {
    if (before > 0) seconds.push(cpuSeconds(child.pid!, "own") - before);
    if (seconds.length === REPETITIONS) break;
    // Waits for deferred work, which is not part of the next change.
    await setTimeout(1000);
    before = cpuSeconds(child.pid!, "own");
    const change = seconds.length % 2 === 0
      ? 'export const wrong: number = "wrong";'
      : "// nothing else";
    writeFileSync(`${file}.new`, `${text}\n${change}\n`);
    renameSync(`${file}.new`, file);
  }
  child.kill("SIGKILL");
  return seconds;
}

const folder = mkdtempSync(join(tmpdir(), "switchyard-startup-"));
try {
  const layer = join(folder, "layer.ts");
  copyFileSync(join(ROOT, "examples/layer.ts"), layer);
  const commands: { readonly [name: string]: readonly string[] } = {
    "--version": ["--version"],
    "--help": ["--help"],
    "plan of a layer": ["plan", layer, "--mesh", "ep=4"],
    "check of a layer": ["check", layer],
  };
  const times: { [name: string]: number[] } = {};
  for (let i = -1; i < REPETITIONS; i++) {
    for (const [name, argv] of Object.entries(commands)) {
      const seconds = secondsOf(argv);
      if (i >= 0) (times[name] ??= []).push(seconds);
    }
  }
  times["check --watch, a change"] = await secondsOfChanges(layer);
  const figures = Object.entries(times).map(([name, seconds]) => ({
    name,
    median: median(seconds),
    runs: seconds.length,
    min: Math.min(...seconds),
    max: Math.max(...seconds),
  }));
  console.log(machine());
  for (const { name, median, min, max, runs } of figures) {
    const [middle, low, high] = [median, min, max].map((s) => s.toFixed(2));
    console.log(
      `${name}: ${middle} s of CPU (${low} to ${high}, ${runs} runs)`,
    );
  }
  if (flags.out) {
    writeDocument(flags.out, {
      program: "startup",
      machine: machine(),
      unit: "seconds of CPU",
      figures,
    });
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}
