/**
 * llama.cpp's logits of the small GGUF file with matrices of all types, which `test/gguf.test.ts` compares with:
 * `--out test/references/llama_logits.json`. Linux on x64 only.
 */

import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { installPeers } from "./peers/install.ts";
import { openLlama } from "./peers/llama.ts";
import { SMALL_VOCABULARY, writeSmallGguf } from "./peers/small_gguf.ts";

const { values: flags } = parseArgs({ options: { out: { type: "string" } } });

const PROMPT = [5, 100, 7, 3, 250, 31, 8, 77];

installPeers();
const folder = mkdtempSync(join(tmpdir(), "switchyard-logits-"));
const file = join(folder, "small.gguf");
writeSmallGguf(file);
const model = await openLlama({
  file,
  threads: 1,
  context: 64,
  vocabulary: SMALL_VOCABULARY,
  prompt: PROMPT,
  newTokens: 1,
});
const context = await model.context(1);
const logits = [...await context.allLogits()].map((x) =>
  Number(x.toPrecision(6))
);
const text = JSON.stringify({ prompt: PROMPT, logits });
if (flags.out === undefined) console.log(text);
else writeFileSync(flags.out, text + "\n");
await model.close();
rmSync(folder, { recursive: true });
process.exit();
