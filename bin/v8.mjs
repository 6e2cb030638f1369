/**
 * Loaded first: the optimizing compiler of V8 before version 12 starts on functions after 0.2 MB of bytecode, which takes a
 * fifth of the processor time of a command that lasts a second, and of a longer one hardly less. Later versions wait by
 * themselves.
 */

import process from "node:process";
import { setFlagsFromString } from "node:v8";

if (Number.parseInt(process.versions.v8) < 12) {
  setFlagsFromString("--interrupt-budget=600000");
}
