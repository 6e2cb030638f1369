/**
 * Runs test files one after another in this process: each message of the parent process is a file and its compiled
 * file. Each file is a test of the root with the name of the file. A file that has ended is reported with its processor
 * seconds. Ends after the message `isLast`.
 */

import { readFileSync } from "node:fs";
import process from "node:process";
import { pathToFileURL } from "node:url";
import { addTestsTo, root } from "../.compiled/node_modules/@tapjs/mod.js";

let before = 0;

process.on("message", async ({ file, compiled, isLast }) => {
  if (isLast) return process.disconnect();
  await root.test(file, async (t) => {
    addTestsTo(t);
    await import(pathToFileURL(compiled).href);
  });
  // tap lets a process end although its parent may send messages.
  process.channel?.ref();
  const now = workSeconds();
  process.send({ worked: now - before, bytes: process.memoryUsage.rss() });
  before = now;
});

/** Returns the processor seconds of this process and its ended descendants, or 0 if the system does not report them. */
function workSeconds() {
  try {
    const text = readFileSync("/proc/self/stat", "utf8");
    const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
    return fields.slice(11, 15).reduce((sum, n) => sum + Number(n), 0) / 100;
  } catch {
    return 0;
  }
}
