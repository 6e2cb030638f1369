/** `node scripts/pictures.mjs` draws the pictures of docs/ again, as `switchyard view` draws them. */

import { spawnSync } from "node:child_process";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { ROOT } from "./setup.mjs";

/** Files of docs/ and what `switchyard view` draws them from. */
export const PICTURES = {
  "layer.svg": ["examples/layer.ts", "--mesh", "ep=4", "--svg", "tracks"],
  "layer_dark.svg": [
    ...["examples/layer.ts", "--mesh", "ep=4", "--svg", "tracks", "--dark"],
  ],
};

if (process.argv[1] === join(ROOT, "scripts/pictures.mjs")) {
  mkdirSync(join(ROOT, "docs"), { recursive: true });
  for (const [file, argv] of Object.entries(PICTURES)) {
    const command = ["bin/switchyard.mjs", "view", ...argv, "--out"];
    const { status } = spawnSync(
      process.execPath,
      [...command, join("docs", file)],
      { cwd: ROOT, stdio: "inherit" },
    );
    if (status !== 0) process.exit(1);
  }
}
