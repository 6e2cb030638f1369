#!/usr/bin/env node
/**
 * The `switchyard` command: `cli/main.ts`, compiled. An installed package has it in `dist`; a clone compiles it where it
 * has changed, even while it is packed and has a `dist` too.
 */

import { existsSync } from "node:fs";
import process from "node:process";
import { pathToFileURL } from "node:url";

const installed = new URL("../dist/cli/main.js", import.meta.url);
const compiler = new URL("../scripts/compile.mjs", import.meta.url);
const { main } = await import(
  existsSync(compiler) ? await compileClone() : installed.href
);
process.exitCode = await main(process.argv.slice(2));

async function compileClone() {
  const { compiledFile, compileOrExit, LIBRARY } = await import(compiler.href);
  await compileOrExit(LIBRARY);
  // Errors and the places of calls speak of the source.
  process.setSourceMapsEnabled(true);
  return pathToFileURL(compiledFile("cli/main.ts")).href;
}
