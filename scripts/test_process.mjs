/**
 * Loaded before a test file.
 *
 * V8 compiles WebAssembly again, to run faster, once a function has done a little. Kernels of tests are done before that
 * pays, and it takes up to a fifth of a file's time. Files of `OPTIMIZED` hold what is optimized to references; programs that
 * tests start, and `npm run bench`, run it too.
 *
 * tap follows every promise of a process, to know which test one belongs to that fails while nobody awaits it; that takes a
 * sixth of the time of the tests. Without it, such a failure is the file's.
 */

import "../bin/v8.mjs";
import hooks from "node:async_hooks";
import { syncBuiltinESMExports } from "node:module";
import process from "node:process";
import { setFlagsFromString } from "node:v8";
import { isMainThread } from "node:worker_threads";

/** Compiled files of tests whose WebAssembly is optimized. */
const OPTIMIZED = /end_to_end[/\\]references\.test\.js$/;

// Threads load this too, with paths of their own; flags are those of the process.
if (isMainThread && !OPTIMIZED.test(process.argv[1])) {
  setFlagsFromString("--wasm-tiering-budget=200000000");
}

hooks.createHook = () => ({ enable() {}, disable() {} });
syncBuiltinESMExports();
