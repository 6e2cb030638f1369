#!/usr/bin/env node
/**
 * The `switchyard` command: the bundled `cli/main.ts`. An installed package contains it in `dist`. A clone bundles it
 * after each change, even if it has a `dist` from packing.
 */

import "./v8.mjs";
import { closeSync, existsSync, openSync, readFileSync } from "node:fs";
import process from "node:process";
import { fileURLToPath, pathToFileURL } from "node:url";

const installed = new URL("../dist/cli/main.js", import.meta.url);
const compiler = new URL("../scripts/compile.mjs", import.meta.url);

// Until `main` runs, which reports errors itself, this handler reports machine errors.
process.on("uncaughtException", fail);
// With less address space, V8 ends the process later without a useful message.
if (addressSpace() < 2 ** 31) await fail(new Error("too little memory"));
// The modules imported above are opened at the same time, before anything can report a limit of open files.
if (process.argv.some((word) => /^(--devices=)?mpi$/.test(word))) {
  const { watchRank } = await import("./watch.mjs").catch(fail);
  watchRank(process.argv.slice(2));
}
// Makes errors and stack traces refer to the source.
process.setSourceMapsEnabled(true);
const { main } = await import(await locate()).catch(fail);
process.off("uncaughtException", fail);
// Fails if not even the error reporting can be loaded.
process.exitCode = await main(process.argv.slice(2)).catch(fail);
// After a machine error, a GPU may never finish its work, and its threads would keep the process alive.
if (process.exitCode === 3) process.exit();

/** Returns the URL of the program. */
async function locate() {
  const { cacheFolder, keepCode } = await import("./code_cache.mjs");
  if (!existsSync(compiler)) {
    const cache = cacheFolder();
    if (cache !== undefined) keepCode(cache, "switchyard");
    return installed.href;
  }
  const { bundledFile, bundleOrExit, declare } = await import(compiler.href);
  await bundleOrExit();
  if (process.argv[2] === "check") declare();
  keepCode(fileURLToPath(new URL("../.compiled", import.meta.url)));
  return pathToFileURL(bundledFile("cli/main.ts")).href;
}

/** Prints why the program cannot start, and ends it with the exit code of machine errors. */
function fail(error) {
  const text = error instanceof Error ? error.message : String(error);
  const [state, remedy] = !hasFiles()
    ? ["too many files are open", "Raise the limit (ulimit -n)"]
    : /memory|allocation|ENOMEM|EAGAIN/i.test(text)
    ? [
      "there is too little memory",
      "Free some, or raise the limit (ulimit -v)",
    ]
    : [
      `'${text.split("\n")[0]}'`,
      text.includes("--allow-")
        ? "Start it by 'deno run --allow-all'"
        : "Install the package again (npm ci)",
    ];
  process.stderr.write(
    `Cannot start switchyard: ${state}. ${remedy}\n`,
    () => process.exit(3),
  );
  // Blocks until the message is written.
  return new Promise(() => {});
}

/** Returns whether the process can open as many files at once as loading needs. */
function hasFiles() {
  const open = [];
  try {
    while (open.length < 100) {
      open.push(openSync(fileURLToPath(import.meta.url)));
    }
    return true;
  } catch ({ code }) {
    return !["EMFILE", "ENFILE"].includes(code);
  } finally {
    open.forEach((file) => closeSync(file));
  }
}

/** Returns the address space limit of this process in bytes, if the system reports it. */
function addressSpace() {
  try {
    const limits = readFileSync("/proc/self/limits", "utf8");
    return Number(/^Max address space +(\d+)/m.exec(limits)?.[1] ?? Infinity);
  } catch {
    return Infinity;
  }
}
