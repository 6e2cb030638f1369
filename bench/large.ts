/**
 * A checkpoint of 3 GB in bf16, of OLMoE's shape with fewer layers, in this process: until its first token, what stays in
 * memory, and how fast it decodes. Makes the checkpoint at first, in `--folder`. `--adapter native|cpu`, `--layers N`,
 * `--new-tokens N`. `--check` compares logits of every device and mesh (`--only WORD`: of those) with llama.cpp's, and
 * `--out FILE` keeps what is found.
 */

import { existsSync, mkdirSync, openSync, statSync, writeSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { nodeFiles } from "../cli/files.ts";
import {
  Decoder,
  decoderShape,
  generate,
  openTarget,
  resolveTarget,
} from "../engine/mod.ts";
import { describe, machine } from "./measure.ts";
import { checkLarge } from "./large/check.ts";
import { writeOlmoe } from "./large/olmoe.ts";

const { values: flags } = parseArgs({
  options: {
    adapter: { type: "string", default: "native" },
    folder: { type: "string", default: join(tmpdir(), "switchyard-large") },
    check: { type: "boolean", default: false },
    only: { type: "string" },
    out: { type: "string" },
    layers: { type: "string", default: "3" },
    "new-tokens": { type: "string", default: "9" },
  },
});
const adapter = flags.adapter === "cpu" ? "cpu" : "native";
const folder = `${flags.folder}-${flags.layers}`;
const file = join(folder, "model.safetensors");
if (!existsSync(join(folder, "config.json"))) {
  mkdirSync(folder, { recursive: true });
  writeOlmoe(Number(flags.layers), {
    write: (name, parts) => {
      const descriptor = openSync(join(folder, name), "w");
      for (const part of parts) writeSync(descriptor, part);
    },
  });
  console.log(`${folder}: made. Start again to measure`);
  process.exit();
}
if (flags.check) {
  const good = await checkLarge(folder, flags);
  // The peer keeps threads of its own.
  process.exit(good ? 0 : 1);
}

const prompt = [1, 20, 300, 4000, 50000];
const newTokens = Number(flags["new-tokens"]);
const target = await resolveTarget(folder, nodeFiles(), {
  loadModel: () => Promise.reject(new Error("Cannot load: no model file")),
});
const opened = await openTarget(target, nodeFiles(), {
  ...{ adapter, sharing: "shared", threads: availableParallelism() },
  next: { candidates: 1 },
  need: {
    ...{ tokens: prompt.length, sequences: 1 },
    context: prompt.length + newTokens,
  },
});
const loaded = performance.now();
const decoder = new Decoder(opened.session, decoderShape(opened.plan)!);
const times: number[] = [];
await generate(decoder, [prompt], {
  ...{ maxNewTokens: newTokens, stop: new Set(), temperature: 0 },
  onToken: () => {
    times.push(performance.now());
  },
});
const first = times[0]!;
const steps = times.slice(1).map((time, i) => time - times[i]!);
const { maxRSS, userCPUTime } = process.resourceUsage();
const bytes = statSync(file).size;
console.log(`${machine()}, ${adapter}, weights of ${gb(bytes)}`);
console.log(
  `since the process began: loaded after ${
    (loaded / 1e3).toFixed(2)
  } s, first token after ${(first / 1e3).toFixed(2)} s`,
);
console.log(
  `most memory ${gb(maxRSS * 1024)}, ${
    (maxRSS * 1024 / bytes).toFixed(2)
  } of the weights; ${(userCPUTime / 1e6).toFixed(2)} s of cores`,
);
if (steps.length > 0) console.log(`a decode step: ${describe(steps)}`);
await opened.close();

function gb(bytes: number): string {
  return `${(bytes / 1e9).toFixed(2)} GB`;
}
