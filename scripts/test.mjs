/**
 * `npm test [-- WORD…]`: completes the set-up, runs test files, and ends with one line, `N passed, N failed, N
 * skipped`. A word is a kind of tests (`pure`, `cpu`, `gpu`, `mpi`, `browser`), a part of a path, or a file. Default:
 * all files that do not rotate, and a seventh of the others (test/README.md). A test is an innermost `t.test`, or a
 * complete file without one. A file that crashes or prints no result counts as failed.
 */

import { availableParallelism, cpus } from "node:os";
import { relative } from "node:path";
import process from "node:process";
import {
  bundle,
  bundledTest,
  bundleStarted,
  bundleTap,
  bundleTests,
  compile,
  compiledFile,
  declare,
  LIBRARY,
  PROGRAMS,
} from "./compile.mjs";
import { ensurePackages } from "./setup.mjs";
import {
  changedPaths,
  chooseFiles,
  KINDS,
  kindsOf,
  rotateFiles,
} from "./test_files.mjs";

/** Number of parallel files: one more than cores, because some wait for processes that they stopped. */
const JOBS = Math.min(4, availableParallelism() + 1);
/** Maximum number of parallel files while cores are idle because several files wait. More would only use memory. */
const MAX_JOBS = JOBS + 2;
/** Number of files that run from a bundle: for fewer, creating it after a change takes longer than it saves. */
const MANY = 25;
/** Idle fraction of all cores that starts another file, and milliseconds between checks. */
const IDLE = 0.08, LOOK_MS = 1000;

ensurePackages();
const { Group, hasOwnProcess, runAlone, startCounting } = await import(
  "./test_runs.mjs"
);
const { time } = await import("./test_results.mjs");

/** Processes that files share. */
const groups = [];

/** Runs one file and returns its counts. */
async function runFile(file) {
  const compiled = place(file);
  if (files.length === 1 || hasOwnProcess(file)) {
    return await runAlone(file, { compiled, kinds });
  }
  let group = groups.find(({ isIdle }) => isIdle);
  if (group === undefined) groups.push(group = new Group(kinds));
  return await group.run(file, compiled);
}

/** Runs files in order and returns their counts. */
async function runAll(files) {
  const waiting = [...files];
  const all = [];
  const running = new Set();
  const start = () => {
    const file = waiting.shift();
    if (file === undefined) return;
    const run = runFile(file).then((counts) => {
      all.push(counts);
      running.delete(run);
      if (running.size < JOBS) start();
    });
    running.add(run);
  };
  for (let i = 0; i < JOBS; i++) start();
  let before = idleTime();
  // In a container, idle cores belong to the host and may not be available.
  const areOurs = availableParallelism() >= cpus().length;
  const timer = setInterval(() => {
    if (!areOurs) return;
    const now = idleTime();
    const share = (now.idle - before.idle) / (now.all - before.all);
    before = now;
    if (share > IDLE && running.size < MAX_JOBS) start();
  }, LOOK_MS);
  while (running.size > 0) await Promise.race(running);
  clearInterval(timer);
  const stray = await Promise.all(groups.map((group) => group.end()));
  return [...all, ...stray.filter((counts) => counts !== undefined)];
}

/** Returns the idle time and the total time of cores. */
function idleTime() {
  const times = cpus().map(({ times }) => times);
  return {
    idle: times.reduce((sum, { idle }) => sum + idle, 0),
    all: times.reduce(
      (sum, each) => Object.values(each).reduce((a, b) => a + b, sum),
      0,
    ),
  };
}

// All processes use one seed.
const seed = process.env.SEED ??= String(
  crypto.getRandomValues(new Int32Array(1))[0],
);
const words = process.argv.slice(2).map((word) => relative(".", word));
const { files: chosen, kinds } = chooseFiles(words);
const isPart = words.some((word) => !KINDS.includes(word));
const files = isPart || process.env.TURNS === "all"
  ? chosen
  : rotateFiles(chosen, {
    seed: Number(seed),
    changed: changedPaths(process.env.SINCE),
  });
const mistakes = new Map([
  ...await compile([...LIBRARY, ...PROGRAMS, ...files]),
  ...await bundle(),
  ...await bundleStarted(),
  ...await bundleTap(),
]);
const isBundled = files.length >= MANY && (await bundleTests()).size === 0;
/** The compiled file of a test. */
const place = isBundled ? bundledTest : compiledFile;
// For a single file, creating the declarations takes longer than checking models without them.
if (files.length > 1) declare();
startCounting();
for (const text of mistakes.values()) console.log(text);
const all = await runAll(files);

const passed = all.reduce((sum, counts) => sum + counts.passed, 0);
const failed = all.reduce((sum, counts) => sum + counts.failed.length, 0);
const skipped = all.reduce((sum, counts) => sum + counts.skipped.length, 0);
if (failed > 0) {
  console.log("\nFailed:");
  for (const { name } of all.flatMap((counts) => counts.failed)) {
    console.log(`  ${name}`);
  }
}
for (const kind of KINDS) {
  const some = all.filter(({ file }) => kindsOf(file).at(-1) === kind);
  if (some.length === 0) continue;
  const sum = (key) => some.reduce((sum, counts) => sum + counts[key], 0);
  const times = { seconds: sum("seconds"), worked: sum("worked") };
  console.log(`${kind}: ${some.length} files, ${time(times)}`);
}
const left = chosen.length - files.length;
if (left > 0) {
  console.log(
    `${left} files did not run. SEED=${seed} repeats this run, TURNS=all runs all files`,
  );
}
console.log(`${passed} passed, ${failed} failed, ${skipped} skipped`);
process.exitCode = failed > 0 || files.length === 0 ? 1 : 0;
