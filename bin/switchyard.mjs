#!/usr/bin/env node
/**
 * The `switchyard` command: `cli/main.ts`. An installed package has it compiled, which starts in a third of the time; a
 * clone runs the TypeScript source, even while it is packed and has a `dist` too.
 */

import { existsSync } from "node:fs";
import process from "node:process";
import { fileURLToPath } from "node:url";

const compiled = new URL("../dist/cli/main.js", import.meta.url);
const clone = existsSync(new URL("../tsconfig.build.json", import.meta.url));
const { main } = !clone && existsSync(compiled)
  ? await import(compiled.href)
  : await importSource();
process.exitCode = await main(process.argv.slice(2));

async function importSource() {
  const { register } = await import("tsx/esm/api");
  // Our own settings, not those of whatever project the command is called in.
  register({
    tsconfig: fileURLToPath(new URL("../tsconfig.json", import.meta.url)),
  });
  return await import("../cli/main.ts");
}
