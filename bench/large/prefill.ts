/** Prefill of a large checkpoint in this process, interleaved with llama.cpp on the same bf16 weights. */

import { existsSync } from "node:fs";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { Decoder, decoderShape, type Target } from "../../engine/mod.ts";
import { openOurs, pause, readPrompt } from "../peers/engine.ts";
import { installPeers } from "../peers/install.ts";
import { openLlama } from "../peers/llama.ts";
import { writeOlmoeGguf } from "../peers/olmoe_gguf.ts";
import { OURS, speedOf, timingOf } from "../results.ts";

/** Milliseconds of runs of a side, by the clock and of all cores. */
interface Times {
  readonly clock: number[];
  readonly cores: number[];
}

/** Measure prefills of so many tokens: what to keep of each side, and how many times as fast this project is. */
export async function measurePrefill(
  folder: string,
  target: Extract<Target, { readonly kind: "checkpoint" }>,
  { tokens, runs }: { readonly tokens: number; readonly runs: number },
): Promise<{ readonly [what: string]: unknown }> {
  installPeers();
  const { vocabulary } = target.checkpoint.published.decoder;
  const prompt = Array.from(
    { length: tokens },
    (_, i) => vocabulary - 1 - i * 1571 % vocabulary,
  );
  const threads = availableParallelism();
  const file = join(folder, "bf16.gguf");
  if (!existsSync(file)) {
    await writeOlmoeGguf(folder, { file, matrices: "bf16" });
  }
  const llama = await openLlama({
    ...{ file, vocabulary, prompt, context: tokens + 1, newTokens: 1 },
    threads,
  });
  const context = await llama.context(threads);
  const opened = await openOurs(target, {
    ...{ adapter: "native", threads, next: { candidates: 1 } },
    need: { tokens, sequences: 1, context: tokens + 1 },
  });
  const decoder = new Decoder(opened.session, decoderShape(opened.plan)!);
  /** Each gives the token that follows. */
  const sides: {
    readonly [side: string]: () => Promise<number | undefined>;
  } = {
    [OURS]: async () => {
      opened.session.reset();
      return (await readPrompt(decoder, prompt)).ids![0];
    },
    "llama.cpp": async () => (await context.generate()).tokens[0],
  };
  const times: { [side: string]: Times } = {};
  const followed: { [side: string]: number | undefined } = {};
  for (let run = -1; run < runs; run++) {
    for (const [side, once] of Object.entries(sides)) {
      await pause();
      const [start, before] = [performance.now(), process.cpuUsage()];
      const next = await once();
      const { user, system } = process.cpuUsage(before);
      const of = times[side] ??= { clock: [], cores: [] };
      if (run < 0) {
        followed[side] = next;
        continue;
      }
      of.clock.push(performance.now() - start);
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
      Object.entries(times).map(([side, { clock, cores }]) => [
        side,
        { clock: timingOf(clock), cores: timingOf(cores) },
      ]),
    ),
    ratios: { clock: ratio("clock"), cores: ratio("cores") },
  };
}
