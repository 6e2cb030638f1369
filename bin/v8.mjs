/**
 * Loaded first. Before version 12, V8's optimizing compiler starts on functions after 0.2 MB of bytecode, which takes a
 * fifth of the processor time of a one-second command. Longer commands lose hardly any time by waiting. Later versions
 * wait by default.
 */

import process from "node:process";
import { setFlagsFromString } from "node:v8";

if (Number.parseInt(process.versions.v8) < 12) {
  setFlagsFromString("--interrupt-budget=600000");
}
