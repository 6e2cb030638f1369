/**
 * Prefill and decode of a GGUF file of OLMoE's or gpt-oss-20b's width: activations in f32, in q8, and llama.cpp,
 * interleaved. `--type Q8_0`, `--width olmoe|gpt-oss`, `--layers N`, `--tokens N` (of a prompt), `--batch N` (prompts),
 * `--runs N` after `--warm-up N`, `--threads N`, `--llama-threads N` (default: `--threads`), `--clock cpu|wall`
 * (processor time or the clock: waiting threads of llama.cpp spin), `--only f32|q8`, `--kv-cache-dtype f32,f16` (one or
 * several; llama.cpp's are f16), `--no-llama`, `--out FILE`.
 */

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
import { coresMs, machine, median } from "./measure.ts";
import { openOurs, pause } from "./peers/engine.ts";
import { installPeers } from "./peers/install.ts";
import { openLlama, type Timed } from "./peers/llama.ts";
import { quantizedFile, VOCABULARY, type WidthName } from "./quantized/file.ts";
import { timingOf, writeDocument } from "./results.ts";

const { values: flags } = parseArgs({
  options: {
    type: { type: "string", default: "Q8_0" },
    width: { type: "string", default: "olmoe" },
    layers: { type: "string", default: "3" },
    batch: { type: "string", default: "1" },
    tokens: { type: "string", default: "256" },
    runs: { type: "string", default: "5" },
    "warm-up": { type: "string", default: "1" },
    threads: { type: "string", default: "1" },
    "llama-threads": { type: "string" },
    clock: { type: "string", default: "cpu" },
    "no-llama": { type: "boolean", default: false },
    only: { type: "string" },
    "kv-cache-dtype": { type: "string", default: "f32" },
    adapter: { type: "string", default: "native" },
    out: { type: "string" },
  },
});
const { type, out, only } = flags;
const width = flags.width as WidthName;
const now = flags.clock === "wall" ? () => performance.now() : coresMs;
const [layers, length, batch, runs, warmUp, threads] = [
  flags.layers,
  flags.tokens,
  flags.batch,
  flags.runs,
  flags["warm-up"],
  flags.threads,
].map(Number) as [number, number, number, number, number, number];
const NEW_TOKENS = 17;
const file = await quantizedFile({ type, layers, width });
const prompts = Array.from({ length: batch }, (_, sequence) =>
  Array.from(
    { length },
    (_, i) => VOCABULARY - 1 - (i * 1571 + sequence * 389) % VOCABULARY,
  ));

const target = await loadTarget(file, nodeFiles());
const sides: { [side: string]: () => Promise<Timed> } = {};
const opened: Opened[] = [];
const modes = (["f32", "q8"] as const).flatMap((activations) =>
  flags["kv-cache-dtype"].split(",").map((dtype) => ({
    activations,
    kvCacheDtype: dtype as "f32" | "f16" | "bf16",
  }))
);
for (const { activations, kvCacheDtype } of modes) {
  if (only !== undefined && only !== activations) continue;
  const one = await openOurs(target, {
    adapter: flags.adapter as "native" | "cpu",
    threads,
    activations,
    kvCacheDtype,
    next: { candidates: 1 },
    need: {
      tokens: length * batch,
      sequences: batch,
      context: length + NEW_TOKENS,
    },
  });
  opened.push(one);
  const decoder = new Decoder(one.session, decoderShape(one.plan)!);
  const side = kvCacheDtype === "f32"
    ? activations
    : `${activations}, ${kvCacheDtype} caches`;
  sides[side] = async () => {
    one.session.reset();
    const { sequences, prefillMs, decodeMs } = await generate(
      decoder,
      prompts,
      { maxNewTokens: NEW_TOKENS, stop: new Set(), temperature: 0, now },
    );
    const tokens = sequences.flatMap(({ tokens }) => tokens);
    return { prefillMs, decodeMs, tokens };
  };
}
const llama = flags["no-llama"] ? undefined : await (async () => {
  installPeers();
  const model = await openLlama({
    file,
    vocabulary: VOCABULARY,
    prompt: prompts[0]!,
    prompts,
    context: length + NEW_TOKENS,
    newTokens: NEW_TOKENS,
    threads,
    now,
  });
  const context = await model.context(
    Number(flags["llama-threads"] ?? threads),
  );
  sides["llama.cpp"] = () => context.generate();
  return model;
})();

const times: {
  [side: string]: { readonly prefill: number[]; readonly decode: number[] };
} = {};
for (let run = -warmUp; run < runs; run++) {
  for (const [side, once] of Object.entries(sides)) {
    await pause();
    const { prefillMs, decodeMs, tokens } = await once();
    const of = times[side] ??= { prefill: [], decode: [] };
    if (run === -warmUp) {
      console.log(`${side}: ${tokens.slice(0, 8).join(" ")}`);
    }
    if (run < 0) continue;
    of.prefill.push(prefillMs);
    of.decode.push(decodeMs / (NEW_TOKENS - 1));
  }
}
const document = {
  program: "quantized",
  machine: machine(),
  type,
  width,
  layers,
  tokens: length,
  batch,
  threads,
  clock: flags.clock,
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
    `${type} ${side}: prefill ${median(prefill).toFixed(0)} ms, a step ${
      median(decode).toFixed(2)
    } ms`,
  );
}
if (out !== undefined) writeDocument(out, document);
for (const one of opened) await one.close();
await llama?.close();
process.exit();
