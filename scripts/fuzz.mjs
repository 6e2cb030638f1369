/** `npm run -s fuzz -- [flags]`: see `test/fuzz/main.ts`. */

import { spawnSync } from "node:child_process";
import { join } from "node:path";
import process from "node:process";
import { ensurePackages, ROOT } from "./setup.mjs";

ensurePackages();
const { status } = spawnSync(
  process.execPath,
  [
    join(ROOT, "scripts/run.mjs"),
    join(ROOT, "test/fuzz/main.ts"),
    ...process.argv.slice(2),
  ],
  { stdio: "inherit" },
);
process.exit(status ?? 1);
