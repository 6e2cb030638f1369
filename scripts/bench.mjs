/** `npm run -s bench -- NAME [flags]`: runs `bench/NAME.ts`. Without a name, lists the programs. */

import { spawnSync } from "node:child_process";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { ensurePackages, ROOT } from "./setup.mjs";

/** Files of bench/ that are not programs. */
const PARTS = [
  ...["check", "measure", "models", "plot", "results", "roof", "session"],
  ...["wgsl_matmul", "work"],
];

/**
 * Programs that run llama.cpp on several threads. Each thread that calls it leaves spinning ones, so one thread calls.
 */
const CALLING = ["peers", "quantized"];

const programs = readdirSync(join(ROOT, "bench"))
  .filter((file) => file.endsWith(".ts"))
  .map((file) => file.slice(0, -".ts".length))
  .filter((name) => !PARTS.includes(name));
const [first, ...flags] = process.argv.slice(2);
const name = first === "--check" ? "check" : first;
if (name !== "check" && !programs.includes(name)) {
  console.error(
    `Usage: npm run -s bench -- ${
      programs.join("|")
    } [flags]\n       npm run -s bench -- --check [names]`,
  );
  process.exit(2);
}
ensurePackages();
const { status } = spawnSync(
  process.execPath,
  [join(ROOT, "scripts/run.mjs"), join("bench", `${name}.ts`), ...flags],
  {
    cwd: ROOT,
    stdio: "inherit",
    env: {
      ...CALLING.includes(name) ? { UV_THREADPOOL_SIZE: "1" } : {},
      ...process.env,
    },
  },
);
process.exit(status ?? 1);
