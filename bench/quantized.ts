/**
 * Prefill and decode of a GGUF file of OLMoE's width by processor time: activations in f32, in q8, and llama.cpp, interleaved.
 * Logits of q8 are compared with those of f32 and llama.cpp's. `--type Q8_0`, `--layers N`, `--tokens N`, `--runs N`,
 * `--threads N`, `--no-llama`, `--out FILE`.
 */

import { existsSync, mkdirSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { nodeFiles } from "../cli/files.ts";
import {
  Decoder,
  decoderShape,
  generate,
  loadTarget,
  type Opened,
} from "../engine/mod.ts";
import { machine, median } from "./measure.ts";
import { openOurs, pause } from "./peers/engine.ts";
import { installPeers } from "./peers/install.ts";
import { openLlama, type Timed } from "./peers/llama.ts";
import { VOCABULARY, writeQuantized } from "./quantized/file.ts";
import { timingOf, writeDocument } from "./results.ts";

const { values: flags } = parseArgs({
  options: {
    type: { type: "string", default: "Q8_0" },
    layers: { type: "string", default: "3" },
    tokens: { type: "string", default: "256" },
    runs: { type: "string", default: "5" },
    threads: { type: "string", default: "1" },
    "no-llama": { type: "boolean", default: false },
    only: { type: "string" },
    adapter: { type: "string", default: "native" },
    out: { type: "string" },
  },
});
const { type, out, only } = flags;
const [layers, length, runs, threads] = [
  flags.layers,
  flags.tokens,
  flags.runs,
  flags.threads,
].map(Number) as [number, number, number, number];
const NEW_TOKENS = 17;
const folder = join(tmpdir(), "switchyard-quantized");
mkdirSync(folder, { recursive: true });
const file = join(folder, `${type}-${layers}.gguf`);
if (!existsSync(file)) writeQuantized(file, { type, layers });
const prompt = Array.from(
  { length },
  (_, i) => VOCABULARY - 1 - i * 1571 % VOCABULARY,
);

/** Processor time of this process, in ms. */
function now(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e3;
}

const target = await loadTarget(file, nodeFiles());
const sides: { [side: string]: () => Promise<Timed> } = {};
const logits: { [side: string]: () => Promise<Float32Array> } = {};
const opened: Opened[] = [];
for (const activations of ["f32", "q8"] as const) {
  if (only !== undefined && only !== activations) continue;
  const one = await openOurs(target, {
    adapter: flags.adapter as "native" | "cpu",
    threads,
    activations,
    next: { candidates: 1 },
    need: { tokens: length, sequences: 1, context: length + NEW_TOKENS },
  });
  opened.push(one);
  const decoder = new Decoder(one.session, decoderShape(one.plan)!);
  sides[activations] = async () => {
    one.session.reset();
    const { sequences, prefillMs, decodeMs } = await generate(
      decoder,
      [prompt],
      { maxNewTokens: NEW_TOKENS, stop: new Set(), temperature: 0, now },
    );
    return { prefillMs, decodeMs, tokens: sequences[0]!.tokens };
  };
}
const llama = flags["no-llama"] ? undefined : await (async () => {
  installPeers();
  const model = await openLlama({
    file,
    vocabulary: VOCABULARY,
    prompt,
    context: length + NEW_TOKENS,
    newTokens: NEW_TOKENS,
    threads,
    now,
  });
  const context = await model.context(threads);
  sides["llama.cpp"] = () => context.generate();
  logits["llama.cpp"] = () => context.logits();
  return model;
})();

const times: {
  [side: string]: { readonly prefill: number[]; readonly decode: number[] };
} = {};
for (let run = -1; run < runs; run++) {
  for (const [side, once] of Object.entries(sides)) {
    await pause();
    const { prefillMs, decodeMs, tokens } = await once();
    const of = times[side] ??= { prefill: [], decode: [] };
    if (run < 0) {
      console.log(`${side}: ${tokens.slice(0, 8).join(" ")}`);
      continue;
    }
    of.prefill.push(prefillMs);
    of.decode.push(decodeMs / (NEW_TOKENS - 1));
  }
}
const document = {
  program: "quantized",
  machine: machine(),
  type,
  layers,
  tokens: length,
  threads,
  sides: Object.fromEntries(
    Object.entries(times).map(([side, { prefill, decode }]) => [
      side,
      { prefill: timingOf(prefill), decode: timingOf(decode) },
    ]),
  ),
};
console.log(document.machine);
for (const [side, { prefill, decode }] of Object.entries(times)) {
  console.log(
    `${type} ${side}: prefill ${median(prefill).toFixed(0)} ms, a token ${
      median(decode).toFixed(2)
    } ms`,
  );
}
if (out !== undefined) writeDocument(out, document);
for (const one of opened) await one.close();
await llama?.close();
process.exit();
