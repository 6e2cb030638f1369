/**
 * Runs test files one after another in this process: each message of the parent process is a file and its compiled
 * file. Each file is a test of the root with the name of the file. A file that has ended is reported with its processor
 * seconds. Ends after the message `isLast`.
 */

import process from "node:process";
import { pathToFileURL } from "node:url";
import { addTestsTo, root } from "../.compiled/node_modules/@tapjs/mod.js";
import { processorSeconds } from "./processor_seconds.mjs";

let before = 0;

process.on("message", async ({ file, compiled, isLast }) => {
  if (isLast) return process.disconnect();
  await root.test(file, async (t) => {
    addTestsTo(t);
    await import(pathToFileURL(compiled).href);
  });
  // tap lets a process end although its parent may send messages.
  process.channel?.ref();
  const { own, ended } = processorSeconds();
  const now = own + ended;
  process.send({ worked: now - before, bytes: process.memoryUsage.rss() });
  before = now;
});
