/** `npm start`: makes sure of the set-up, then runs the main job, `cli/start.ts`. */

import process from "node:process";
import { fileURLToPath } from "node:url";
import { ensurePackages } from "./setup.mjs";

ensurePackages();
const { register } = await import("tsx/esm/api");
register({
  tsconfig: fileURLToPath(new URL("../tsconfig.json", import.meta.url)),
});
const { start } = await import("../cli/start.ts");
process.exitCode = await start(process.argv.slice(2));
