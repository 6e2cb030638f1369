/**
 * Loaded before a test file.
 *
 * V8 compiles WebAssembly again, to run faster, once a function has done a little. Kernels of tests are done before that
 * pays, and it takes up to a fifth of a file's time; programs that tests start, and `npm run bench`, run optimized ones.
 *
 * tap follows every promise of a process, to know which test one belongs to that fails while nobody awaits it; that takes a
 * sixth of the time of the tests. Without it, such a failure is the file's.
 */

import "../bin/v8.mjs";
import hooks from "node:async_hooks";
import { syncBuiltinESMExports } from "node:module";
import { setFlagsFromString } from "node:v8";

setFlagsFromString("--wasm-tiering-budget=200000000");

hooks.createHook = () => ({ enable() {}, disable() {} });
syncBuiltinESMExports();
