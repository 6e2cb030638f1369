/**
 * Loaded before a test file.
 *
 * V8 recompiles WebAssembly for speed after a function has run for a while. Kernels of tests finish before that is
 * useful, and it takes up to a fifth of a file's time. It is therefore off, except in the files of `OPTIMIZED`, which
 * compare optimized code with references. Programs that tests start, and `npm run bench`, also run with it.
 *
 * V8's optimizing compiler starts later than in programs (bin/v8.mjs): most functions of tests run for a short time.
 *
 * The compiled code of the modules that a test imports is stored for other tests, which saves a third of their start.
 *
 * tap tracks every promise of a process to assign unhandled failures to tests, which takes a sixth of the test time. It
 * is therefore off, and such a failure belongs to the file.
 */

import "../bin/v8.mjs";
import { keepCode } from "../bin/code_cache.mjs";
import hooks from "node:async_hooks";
import { syncBuiltinESMExports } from "node:module";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { setFlagsFromString } from "node:v8";
import { isMainThread } from "node:worker_threads";

/** Compiled test files with optimized WebAssembly. */
const OPTIMIZED = /end_to_end[/\\]references\.test\.js$/;

// Threads load this file too, with other paths. Flags belong to the process.
if (isMainThread) {
  if (!OPTIMIZED.test(process.argv[1])) {
    setFlagsFromString("--wasm-tiering-budget=200000000");
  }
  if (Number.parseInt(process.versions.v8) < 12) {
    setFlagsFromString("--interrupt-budget=2000000");
  }
  keepCode(fileURLToPath(new URL("../.compiled", import.meta.url)));
}

hooks.createHook = () => ({ enable() {}, disable() {} });
syncBuiltinESMExports();
