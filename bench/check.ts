/**
 * Repeats the measurements in bench/results/ and compares the ratios. A loss of more than 15 % is a failure. Arguments
 * name the programs to check. Started by `npm run -s bench -- --check`.
 */

import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { readResult, resultsPath } from "./results.ts";

/** Allowed loss of a ratio. */
const LOSS = 0.15;

const named = process.argv.slice(2).filter((word) => !word.startsWith("-"));
/** Runs a program of this folder. */
const RUN = fileURLToPath(new URL("../scripts/run.mjs", import.meta.url));
const results = fileURLToPath(new URL("results/", import.meta.url));
const all = (existsSync(results) ? readdirSync(results) : [])
  .filter((file) => file.endsWith(".json"))
  .map((file) => file.slice(0, -".json".length))
  .filter((name) => readResult(resultsPath(name)).ratios !== undefined);
const missing = named.length === 0
  ? all.length === 0 ? ["ratios"] : []
  : named.filter((name) => !all.includes(name));
if (missing.length > 0) {
  console.error(
    `Cannot check ${
      missing.join(", ")
    }: bench/results/ keeps no such figures. Keep some first: npm run -s bench -- peers|gpu_peers|grouped_matmul|roofline --out bench/results/NAME.json`,
  );
  process.exit(1);
}
const selected = named.length === 0 ? all : named;
const folder = mkdtempSync(join(tmpdir(), "switchyard-check-"));
let lost = 0;
try {
  for (const name of selected) {
    const before = readResult(resultsPath(name));
    const out = join(folder, `${name}.json`);
    const program = fileURLToPath(
      new URL(`${before.program}.ts`, import.meta.url),
    );
    const { status } = spawnSync(
      process.execPath,
      [RUN, program, ...before.flags ?? [], "--out", out],
      { stdio: ["ignore", "ignore", "inherit"] },
    );
    if (status !== 0) {
      console.log(`${name}: it failed`);
      lost++;
      continue;
    }
    const now = readResult(out);
    if (now.adapter !== before.adapter) {
      console.log(
        `${name}: not compared: kept are figures of ${before.adapter}, and this is ${now.adapter}`,
      );
      continue;
    }
    for (const [ratio, value] of Object.entries(before.ratios)) {
      const found = now.ratios[ratio];
      const ok = found !== undefined && found >= (1 - LOSS) * value;
      if (!ok) lost++;
      console.log(
        `${ok ? "ok  " : "LOST"} ${ratio}: ${
          found ?? "not measured"
        }, kept ${value}`,
      );
    }
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}
console.log(
  lost === 0
    ? `no ratio lost more than ${100 * LOSS} %`
    : `${lost} lost more than ${100 * LOSS} %`,
);
process.exit(lost === 0 ? 0 : 1);
