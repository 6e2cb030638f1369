/**
 * Processes of test files. Most files share processes, one file after another: the modules of the library are then
 * loaded and optimized once.
 */

import { spawn, spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { Parser } from "tap-parser";
import { processorSeconds } from "./processor_seconds.mjs";
import { ROOT } from "./setup.mjs";
import { summarise, TIMEOUT, watch } from "./test_results.mjs";

/** Resident bytes of a process after which no other file runs in it. */
const MAX_BYTES = 1.5e9;

const TEST_PROCESS = new URL("test_process.mjs", import.meta.url).href;
const GROUP_PROCESS = join(ROOT, "scripts", "test_group_process.mjs");

/**
 * Tests of optimized C. In others the C compiler does not optimize, which takes a quarter of the time: a kernel of a
 * test takes less time to run than to compile.
 */
const OPTIMIZED_C =
  /^test.(end_to_end.references|packed_bytes|native_\w+)\.test\.ts$/;

const UNOPTIMIZED_C = unoptimizedCompiler();

/** MB for new objects: with the defaults of V8, 1 to 16, garbage collection takes a tenth of the time of tests. */
const YOUNG = ["--min-semi-space-size=32", "--max-semi-space-size=64"];

/**
 * Returns whether a file has a process without other files: it has settings of its own, or its line `// own process:
 * REASON` requests it.
 */
export function hasOwnProcess(file) {
  const path = join(ROOT, file);
  const text = existsSync(path) ? readFileSync(path, "utf8") : "";
  return OPTIMIZED_C.test(file) || /^\/\/ own process: /m.test(text);
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

/** Processor seconds of ended processes when the last one ended. */
let counted = 0;

/** Assigns the processor seconds of processes that have ended so far to no file. */
export function startCounting() {
  counted = processorSeconds().ended;
}

/** Returns the processor seconds of the last ended process. */
function secondsOfLast() {
  const before = counted;
  counted = processorSeconds().ended;
  return counted - before;
}

/**
 * Starts Node.js for test files of `kinds`. `c` are environment variables that select a C compiler, `stdio` are streams
 * besides the standard ones.
 */
function startNode(program, { kinds, c, stdio }) {
  return spawn(
    process.execPath,
    [...YOUNG, "--enable-source-maps", "--import", TEST_PROCESS, program],
    {
      cwd: ROOT,
      env: {
        ...process.env,
        TAP_TIMEOUT: String(TIMEOUT),
        // A software GPU spends more time on compiling a kernel than on running it. Without optimization, and for
        // narrow vectors, this takes less than half as long.
        GALLIVM_PERF: "nopt",
        LP_NATIVE_VECTOR_WIDTH: "128",
        ...c,
        // Tests that need another kind are skipped; see test/helpers/needs.ts.
        SWITCHYARD_TEST_KINDS: kinds.join(),
      },
      stdio: ["ignore", "pipe", "pipe", ...stdio],
    },
  );
}

/** Runs a file in its own process and returns its counts. `compiled` is its compiled file. */
export function runAlone(file, { compiled, kinds }) {
  const started = performance.now();
  const c = OPTIMIZED_C.test(file) ? {} : UNOPTIMIZED_C;
  const child = startNode(compiled, { kinds, c, stdio: [] });
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

/** A process that runs files one after another. */
export class Group {
  #child;
  #parser = new Parser();
  /** The file that runs, and the parts of its result that have arrived. */
  #run;
  #isClosed = false;
  #isLeaving = false;
  /** Resolves to the exit code or signal of the process. */
  #closed;
  /** Files that have run, and whether the last one failed. */
  #files = [];
  #hasFailed = false;

  constructor(kinds) {
    this.#child = startNode(GROUP_PROCESS, {
      kinds,
      c: UNOPTIMIZED_C,
      stdio: ["ipc"],
    });
    this.#parser.on("child", (child) => {
      const run = this.#run;
      run.points = watch(child);
      child.on("complete", (ended) => {
        run.ended = ended;
        this.#finish();
      });
    });
    this.#parser.on("assert", (result) => {
      const isFile = this.#files.includes(result.name);
      // A failure outside of tests.
      if (!isFile) this.#run?.points.push({ result, points: [] });
    });
    this.#child.stdout.pipe(this.#parser);
    this.#child.stderr.on("data", (text) => this.#run?.stderr.push(text));
    this.#child.on("message", (work) => {
      // tap sends messages too.
      if (!("worked" in work)) return;
      this.#run.work = work;
      this.#finish();
    });
    // The process may end before it reads a message.
    this.#child.on("error", () => {});
    this.#child.on("exit", secondsOfLast);
    this.#closed = new Promise((resolve) => {
      this.#child.on("close", (code, signal) => {
        this.#isClosed = true;
        this.#finish(code ?? signal);
        resolve(code ?? signal);
      });
    });
  }

  /** Whether another file can run in this process. */
  get isIdle() {
    return this.#run === undefined && !this.#isClosed;
  }

  /** Runs a file and returns its counts. `compiled` is its compiled file. */
  async run(file, compiled) {
    this.#files.push(file);
    const started = performance.now();
    const timer = setTimeout(
      () => this.#child.kill("SIGKILL"),
      TIMEOUT * 1000,
    );
    const run = { points: [], stderr: [] };
    const ended = new Promise((resolve) => {
      run.resolve = resolve;
    });
    this.#run = run;
    this.#child.send({ file, compiled });
    const exit = await ended;
    clearTimeout(timer);
    const { worked = 0, bytes = 0 } = run.work ?? {};
    const counts = summarise(file, {
      points: run.points,
      ended: run.ended ?? { plan: {} },
      exit,
      stderr: Buffer.concat(run.stderr).toString(),
      seconds: (performance.now() - started) / 1000,
      worked,
    });
    // What a failed file left could fail others.
    this.#hasFailed = counts.failed.length > 0;
    if (this.#hasFailed || bytes > MAX_BYTES) this.#leave();
    else this.#run = undefined;
    return counts;
  }

  /** Resolves the current run if its results have arrived, or the process has ended with `exit`. */
  #finish(exit) {
    const run = this.#run;
    if (run === undefined) return;
    if (exit !== undefined) run.resolve(exit);
    else if (run.ended && run.work) run.resolve(0);
  }

  /** Lets the process end. If this process disconnected, Node.js would not report its end. */
  #leave() {
    if (this.#isLeaving || !this.#child.connected) return;
    this.#isLeaving = true;
    this.#child.send({ isLast: true });
  }

  /** Ends the process. Returns the counts of a failure that belongs to no file, or undefined. */
  async end() {
    this.#run = { points: [], stderr: [], resolve: () => {} };
    this.#leave();
    const exit = await this.#closed;
    if (exit === 0 || this.#hasFailed) return undefined;
    return summarise(`a process of ${this.#files.join(", ")}`, {
      points: this.#run.points,
      ended: { plan: {} },
      exit,
      stderr: Buffer.concat(this.#run.stderr).toString(),
      seconds: 0,
      worked: 0,
    });
  }
}
