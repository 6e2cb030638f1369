#!/usr/bin/env node
/** The `switchyard` command: `cli/main.ts`, run from its TypeScript source, in a clone and in an installed package. */

import process from "node:process";
import { fileURLToPath } from "node:url";
import { register } from "tsx/esm/api";

// Our own settings, not those of whatever project the command is called in.
register({
  tsconfig: fileURLToPath(new URL("../tsconfig.json", import.meta.url)),
});
const { main } = await import("../cli/main.ts");
process.exitCode = await main(process.argv.slice(2));
