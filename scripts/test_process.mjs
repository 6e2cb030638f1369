/**
 * Loaded before a test file.
 *
 * tap follows every promise of a process, to know which test one belongs to that fails while nobody awaits it; that takes a
 * sixth of the time of the tests. Without it, such a failure is the file's.
 */

import "../bin/v8.mjs";
import hooks from "node:async_hooks";
import { syncBuiltinESMExports } from "node:module";

hooks.createHook = () => ({ enable() {}, disable() {} });
syncBuiltinESMExports();
