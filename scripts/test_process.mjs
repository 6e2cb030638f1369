/**
 * Loaded before a test file.
 *
 * tap follows every promise of a process, to know which test one belongs to that fails while nobody awaits it; that takes a
 * sixth of the time of the tests. Without it, such a failure is the file's.
 *
 * A third of the time goes into V8's optimizing compiler, and what it makes is hardly used before the process ends: here
 * functions must run longer before they are optimized.
 */

import hooks from "node:async_hooks";
import { syncBuiltinESMExports } from "node:module";
import { setFlagsFromString } from "node:v8";

hooks.createHook = () => ({ enable() {}, disable() {} });
syncBuiltinESMExports();
setFlagsFromString("--interrupt-budget=600000");
