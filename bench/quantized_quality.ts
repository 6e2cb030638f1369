/**
 * Perplexity of quantized checkpoints with rows of 256 elements, which the bundled one does not have. Trains a small
 * OLMoE on `--data` and quantizes it; prints the change of perplexity on `--validate`. Ends with 1 if a change is too
 * large.
 */

import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { packageFile } from "../cli/package_file.ts";

/** Fields in place of those of `examples/train/stories`: 8 million parameters. */
const SIZES = { hidden_size: 256, intermediate_size: 256 };

/** The largest allowed change of perplexity by format. */
const LIMITS = { q8_0: 0.001, q4_k: 0.02 } as const;

const { values: flags } = parseArgs({
  options: {
    data: { type: "string" },
    validate: { type: "string" },
    steps: { type: "string", default: "1500" },
    adapter: { type: "string", default: "native" },
  },
});
if (!flags.data || !flags.validate) {
  console.error(
    "Usage: npm run -s bench -- quantized_quality --data TEXT --validate TEXT [--steps N] [--adapter NAME]",
  );
  process.exit(2);
}

function switchyard(...argv: string[]): string {
  return execFileSync(
    process.execPath,
    [packageFile("bin/switchyard.mjs"), ...argv, "--adapter", flags.adapter],
    { encoding: "utf8", stdio: ["ignore", "pipe", "inherit"] },
  );
}

const folder = mkdtempSync(join(tmpdir(), "switchyard-"));

function at(name: string): string {
  return join(folder, name);
}

try {
  const stories = packageFile("examples/train/stories/config.json");
  const config = JSON.parse(readFileSync(stories, "utf8")) as object;
  writeFileSync(at("config.json"), JSON.stringify({ ...config, ...SIZES }));
  switchyard(
    ...["train", folder, "--tokenizer", packageFile("examples/demo-lm")],
    ...["--data", flags.data, "--steps", flags.steps, "--batch", "8"],
    ...["--length", "128", "--lr", "0.004", "--warmup", "50"],
    ...["--floor", "0.05", "--weight-decay", "0.1", "--aux", "0.1"],
    ...["--balance", "layer", "--out", at("trained")],
  );
  for (const [to, limit] of Object.entries(LIMITS)) {
    const { types, score } = JSON.parse(switchyard(
      ...["quantize", at("trained"), "--to", to, "--out", at(`${to}.gguf`)],
      ...["--text", flags.validate, "--window", "256", "--json"],
    )) as {
      types: object;
      score: {
        perplexity: { value: number };
        against: { change: { value: number; error: number } };
      };
    };
    const { value, error } = score.against.change;
    console.log(
      `${to} (${Object.keys(types).join(" ")}): perplexity ${
        score.perplexity.value.toFixed(2)
      }, change ${(100 * value).toFixed(3)} ± ${(100 * error).toFixed(3)} %`,
    );
    if (Math.abs(value) > limit) process.exitCode = 1;
  }
} finally {
  rmSync(folder, { recursive: true });
}
