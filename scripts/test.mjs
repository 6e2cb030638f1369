/**
 * `npm test [-- WORD…]`: completes the set-up, runs test files, and ends with one line, `N passed, N failed, N
 * skipped`. A word is a kind of tests (`pure`, `cpu`, `gpu`, `mpi`, `browser`), a part of a path, or a file. Default:
 * all files. A test is an innermost `t.test`, or a complete file without one. A file that crashes or prints no result
 * counts as failed.
 */

import { spawn, spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
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
import { ensurePackages, ROOT } from "./setup.mjs";
import { chooseFiles, KINDS, kindsOf } from "./test_files.mjs";

/** Seconds after which a file counts as hanging, even on a busy machine. */
const TIMEOUT = 3600;
/** Number of parallel files: one more than cores, because some wait for processes that they stopped. */
const JOBS = Math.min(4, availableParallelism() + 1);
/** Maximum number of parallel files while cores are idle because several files wait. More would only use memory. */
const MAX_JOBS = JOBS + 2;
/** Number of files that run from a bundle: for fewer, creating it after a change takes longer than it saves. */
const MANY = 25;
/** Idle fraction of all cores that starts another file, and milliseconds between checks. */
const IDLE = 0.08, LOOK_MS = 1000;

const TEST_PROCESS = new URL("test_process.mjs", import.meta.url).href;

/**
 * Tests of optimized C. In others the C compiler does not optimize, which takes a quarter of the time: a kernel of a test
 * takes less time to run than to compile.
 */
const OPTIMIZED_C =
  /^test.(end_to_end.references|packed_bytes|native_\w+)\.test\.ts$/;

ensurePackages();
const { Parser } = await import("tap-parser");

/** Collects the tree of tests from a TAP stream: each point with its inner points. */
function watch(parser) {
  const points = [];
  let inside;
  parser.on("child", (child) => {
    inside = watch(child);
  });
  parser.on("assert", (result) => {
    points.push({ result, points: inside ?? [] });
    inside = undefined;
  });
  return points;
}

/** Adds the tests among `points` to `counts`. `path` contains the names of the enclosing tests. */
function tally(points, { path, counts }) {
  for (const { result, points: inner } of points) {
    const name = [...path, result.name].join(" > ");
    const failed = counts.failed.length;
    if (inner.some((point) => point.points.length > 0)) {
      tally(inner, { path: [...path, result.name], counts });
      if (result.ok || counts.failed.length > failed) continue;
    }
    if (result.skip || result.todo) {
      const reason = [result.skip, result.todo].find((r) =>
        typeof r === "string"
      );
      counts.skipped.push(`${name}: ${reason || "no reason given"}`);
      continue;
    }
    for (const { result: { skip, name: part } } of inner) {
      if (skip) counts.skipped.push(`${name} > ${part}: ${skip}`);
    }
    if (result.ok) counts.passed++;
    else counts.failed.push({ name, details: failures(result, inner) });
  }
}

/** Returns the failed assertions of a test with their diagnostics. */
function failures(result, inner) {
  const bad = inner.filter((p) => !p.result.ok && !p.result.todo);
  return (bad.length > 0 ? bad.map((p) => p.result) : [result])
    .map((r) => [r.name, ...diagnosis(r.diag)].join("\n"))
    .join("\n");
}

/** Formats the diagnostics of a failed assertion as lines. */
function diagnosis(diag) {
  return Object.entries(diag || {})
    .filter(([key]) => !["at", "test", "tapCaught", "compare"].includes(key))
    .map(([key, value]) => {
      const text = typeof value === "string" ? value : JSON.stringify(value);
      return indent(`${key}:\n${indent(text.trimEnd())}`);
    });
}

function indent(text) {
  return text.replaceAll(/^/gm, "    ");
}

/** Returns the processor seconds of ended processes and their descendants, or 0 if the system does not report them. */
function childSeconds() {
  try {
    const text = readFileSync("/proc/self/stat", "utf8");
    const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
    return (Number(fields[13]) + Number(fields[14])) / 100;
  } catch {
    return 0;
  }
}

const UNOPTIMIZED_C = unoptimizedCompiler();

let counted = 0;

/** Returns the processor seconds of the last ended process. */
function secondsOfLast() {
  const before = counted;
  counted = childSeconds();
  return counted - before;
}

/**
 * Returns a C compiler of this machine without optimization and inlining, as a setting. Empty without a compiler. Clang
 * takes two thirds of the time of GCC.
 */
function unoptimizedCompiler() {
  const named = process.env.CC?.trim();
  const command = [named || [], "clang", "cc", "gcc"].flat().find((command) =>
    spawnSync(command.split(/\s/)[0], ["--version"]).status === 0
  );
  return command === undefined ? {} : { CC: `${command} -O0 -DINLINE=static` };
}

/** Runs one file and returns its counts. */
function runFile(file) {
  const started = performance.now();
  const child = spawn(
    process.execPath,
    [
      ...["--enable-source-maps", "--import", TEST_PROCESS],
      place(file),
    ],
    {
      cwd: ROOT,
      env: {
        ...process.env,
        TAP_TIMEOUT: String(TIMEOUT),
        // A software GPU spends more time on compiling a kernel than on running it. Without optimization, and for
        // narrow vectors, this takes less than half as long.
        GALLIVM_PERF: "nopt",
        LP_NATIVE_VECTOR_WIDTH: "128",
        ...OPTIMIZED_C.test(file) ? {} : UNOPTIMIZED_C,
        // Tests that need another kind are skipped; see test/helpers/needs.ts.
        SWITCHYARD_TEST_KINDS: kinds.join(),
      },
      stdio: ["ignore", "pipe", "pipe"],
    },
  );
  const timer = setTimeout(() => child.kill("SIGKILL"), TIMEOUT * 1000);
  const parser = new Parser();
  const points = watch(parser);
  const diagnostics = [];
  let worked = 0;
  child.on("exit", () => {
    worked = secondsOfLast();
  });
  child.stderr.on("data", (text) => diagnostics.push(text));
  child.stdout.pipe(parser);
  return new Promise((resolve) => {
    let exit;
    let ended;
    const finish = () => {
      if (exit === undefined || ended === undefined) return;
      clearTimeout(timer);
      resolve(summarise(file, {
        points,
        ended,
        exit,
        stderr: Buffer.concat(diagnostics).toString(),
        seconds: (performance.now() - started) / 1000,
        worked,
      }));
    };
    parser.on("complete", (results) => {
      ended = results;
      finish();
    });
    child.on("close", (code, signal) => {
      exit = code ?? signal;
      finish();
    });
  });
}

function summarise(file, { points, ended, exit, stderr, seconds, worked }) {
  const counts = { file, seconds, worked, passed: 0, failed: [], skipped: [] };
  const empty = ["", "no tests found"].includes(ended.plan.skipReason ?? "");
  if (ended.plan.skipAll && !empty) {
    counts.skipped.push(`${file}: ${ended.plan.skipReason}`);
  } else if (points.length > 0 && points.every((p) => p.points.length === 0)) {
    tally([{ result: { ok: ended.ok, name: file }, points }], {
      path: [],
      counts,
    });
  } else {
    tally(points, { path: [file], counts });
  }
  // A file can fail outside of its tests: it crashes, hangs, or runs no test.
  const ran = counts.passed + counts.failed.length + counts.skipped.length;
  if (counts.failed.length === 0 && (!ended.ok || exit !== 0 || ran === 0)) {
    const why = exit === "SIGKILL"
      ? `killed after ${TIMEOUT} s`
      : `ran ${ran} tests, then exit ${exit}`;
    counts.failed.push({ name: file, details: why });
  }
  if (counts.failed.length > 0 && stderr !== "") {
    const lines = stderr.trimEnd().split("\n");
    // A driver may print the same message for every device.
    const text = [...new Set(lines)].join("\n");
    counts.failed.at(-1).details += `\n${indent(text)}`;
  }
  const line = [
    `${counts.passed} passed`,
    counts.failed.length > 0 ? `${counts.failed.length} FAILED` : "",
    counts.skipped.length > 0 ? `${counts.skipped.length} skipped` : "",
  ].filter((part) => part !== "").join(", ");
  console.log(`${file}: ${line} (${time({ seconds, worked })})`);
  for (const { name, details } of counts.failed) {
    console.log(`  FAILED ${name}\n${indent(details)}`);
  }
  for (const name of counts.skipped) console.log(`  skipped ${name}`);
  return counts;
}

/** Formats the duration of files and their processor time. */
function time({ seconds, worked }) {
  const work = worked > 0 ? `, ${worked.toFixed(1)} s of CPU` : "";
  return `${seconds.toFixed(1)} s${work}`;
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
  return all;
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

const { files, kinds } = chooseFiles(
  process.argv.slice(2).map((word) => relative(".", word)),
);
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
counted = childSeconds();
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
console.log(`${passed} passed, ${failed} failed, ${skipped} skipped`);
process.exitCode = failed > 0 || files.length === 0 ? 1 : 0;
