/** `npm start`: completes the set-up, then runs `cli/start.ts`. */

import process from "node:process";
import { pathToFileURL } from "node:url";
import { bundledFile, bundleOrExit } from "./compile.mjs";
import { ensurePackages } from "./setup.mjs";

ensurePackages();
await bundleOrExit();
process.setSourceMapsEnabled(true);
const { start } = await import(
  pathToFileURL(bundledFile("cli/start.ts")).href
);
process.exitCode = await start(process.argv.slice(2));
