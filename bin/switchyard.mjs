#!/usr/bin/env node
/**
 * The `switchyard` command: `cli/main.ts`, bundled. An installed package has it in `dist`; a clone bundles it where it has
 * changed, even while it is packed and has a `dist` too.
 */

import "./v8.mjs";
import { closeSync, existsSync, openSync, readFileSync } from "node:fs";
import process from "node:process";
import { fileURLToPath, pathToFileURL } from "node:url";

const installed = new URL("../dist/cli/main.js", import.meta.url);
const compiler = new URL("../scripts/compile.mjs", import.meta.url);

// Until `main` runs, which says what is wrong with the machine, nobody else does.
process.on("uncaughtException", fail);
// With less address space, V8 ends the process somewhere later and says nothing of use.
if (addressSpace() < 2 ** 31) await fail(new Error("too little memory"));
// Modules that are imported above are open at once, before anything can say that too many files are.
if (process.argv.some((word) => /^(--devices=)?mpi$/.test(word))) {
  const { watchRank } = await import("./watch.mjs").catch(fail);
  watchRank(process.argv.slice(2));
}
// Errors and the places of calls speak of the source.
process.setSourceMapsEnabled(true);
const { main } = await import(await locate()).catch(fail);
process.off("uncaughtException", fail);
// It fails where not even what says so can be loaded.
process.exitCode = await main(process.argv.slice(2)).catch(fail);
// Where the machine is at fault, a GPU may never end what it was given, and its threads would keep the process.
if (process.exitCode === 3) process.exit();

/** The program's URL. */
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

/** Says in a sentence why the program cannot start, and ends it as `main` does where the machine is at fault. */
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
  // Nothing goes on until the sentence is out.
  return new Promise(() => {});
}

/** Whether as many files can be opened as loading a program opens at once. */
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

/** Bytes of address space that this process may have, where the system tells. */
function addressSpace() {
  try {
    const limits = readFileSync("/proc/self/limits", "utf8");
    return Number(/^Max address space +(\d+)/m.exec(limits)?.[1] ?? Infinity);
  } catch {
    return Infinity;
  }
}
