/**
 * Prefill of a large checkpoint in this process and the following tokens, interleaved with llama.cpp on the same bf16
 * weights.
 */

import { existsSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import {
  Decoder,
  decoderShape,
  generate,
  type Target,
} from "../../engine/mod.ts";
import { openOurs, pause } from "../peers/engine.ts";
import { installPeers } from "../peers/install.ts";
import { openLlama, type Timed } from "../peers/llama.ts";
import { writeOlmoeGguf } from "../peers/olmoe_gguf.ts";
import { OURS, speedOf, timingOf } from "../results.ts";

/** Number of following tokens. The prefill returns the first of them. */
const NEW_TOKENS = 17;

/**
 * Milliseconds of runs: time of the prefill and per following token by the given clock, and the time of all cores for
 * the complete run.
 */
interface Times {
  readonly prefill: number[];
  readonly decode: number[];
  readonly cores: number[];
}

/**
 * Measures prefills of the given number of tokens and the following tokens. Returns the results of each side and this
 * project's speed ratio.
 */
export async function measurePrefill(
  folder: string,
  target: Extract<Target, { readonly kind: "checkpoint" }>,
  { tokens, runs, threads, now }: {
    readonly tokens: number;
    readonly runs: number;
    readonly threads: number;
    /** The clock in ms. */
    now(): number;
  },
): Promise<{ readonly [what: string]: unknown }> {
  installPeers();
  const { vocabulary } = target.checkpoint.published.decoder;
  const prompt = Array.from(
    { length: tokens },
    (_, i) => vocabulary - 1 - i * 1571 % vocabulary,
  );
  const file = join(folder, "bf16.gguf");
  if (!existsSync(file)) {
    await writeOlmoeGguf(folder, { file, matrices: "bf16" });
  }
  const llama = await openLlama({
    file,
    vocabulary,
    prompt,
    context: tokens + NEW_TOKENS,
    newTokens: NEW_TOKENS,
    threads,
    now,
  });
  const context = await llama.context(threads);
  const opened = await openOurs(target, {
    adapter: "native",
    threads,
    next: { candidates: 1 },
    need: { tokens, sequences: 1, context: tokens + NEW_TOKENS },
  });
  const decoder = new Decoder(opened.session, decoderShape(opened.plan)!);
  const sides: { readonly [side: string]: () => Promise<Timed> } = {
    [OURS]: async () => {
      opened.session.reset();
      const { sequences, prefillMs, decodeMs } = await generate(
        decoder,
        [prompt],
        { maxNewTokens: NEW_TOKENS, stop: new Set(), temperature: 0, now },
      );
      return { prefillMs, decodeMs, tokens: sequences[0]!.tokens };
    },
    "llama.cpp": () => context.generate(),
  };
  const times: { [side: string]: Times } = {};
  const followed: { [side: string]: number | undefined } = {};
  for (let run = -1; run < runs; run++) {
    for (const [side, once] of Object.entries(sides)) {
      await pause();
      const before = process.cpuUsage();
      const { prefillMs, decodeMs, tokens: [next] } = await once();
      const { user, system } = process.cpuUsage(before);
      const of = times[side] ??= { prefill: [], decode: [], cores: [] };
      if (run < 0) {
        followed[side] = next;
        continue;
      }
      of.prefill.push(prefillMs);
      of.decode.push(decodeMs / (NEW_TOKENS - 1));
      of.cores.push((user + system) / 1e3);
    }
    if (new Set(Object.values(followed)).size > 1) {
      throw new Error(
        `Cannot compare prefills: their next tokens are ${
          JSON.stringify(followed)
        }. llama.cpp rounds activations to bf16, which may decide between two that are close: try another --tokens`,
      );
    }
  }
  await opened.close();
  await llama.close();
  const ratio = (of: keyof Times) =>
    speedOf(times[OURS]![of], times["llama.cpp"]![of]);
  return {
    tokens,
    sides: Object.fromEntries(
      Object.entries(times).map(([side, { prefill, decode, cores }]) => [
        side,
        {
          prefill: timingOf(prefill),
          decode: timingOf(decode),
          cores: timingOf(cores),
        },
      ]),
    ),
    ratios: {
      prefill: ratio("prefill"),
      decode: ratio("decode"),
      cores: ratio("cores"),
    },
  };
}
