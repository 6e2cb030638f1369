/**
 * Prefill and greedy decode of one sequence of the bundled checkpoint on one adapter: this project against all others.
 */

import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { nodeFiles } from "../../cli/files.ts";
import {
  Decoder,
  decoderShape,
  generate,
  loadTarget,
  packPrompts,
} from "../../engine/mod.ts";
import { OURS, type Result } from "../results.ts";
import {
  type Demo,
  DEMO_FOLDER,
  DEMO_PROMPT,
  DEMO_WORK,
  readDemo,
} from "./demo.ts";
import { openOurs } from "./engine.ts";
import type { GpuRun } from "./gpu_run.ts";
import { openLlama, type Timed } from "./llama.ts";
import { writeOlmoeGguf } from "./olmoe_gguf.ts";
import { ortDecoder } from "./onnx_decoder.ts";
import { tfDecoder } from "./tf_decoder.ts";
import { interleave, type Side } from "./interleave.ts";

/** Allowed difference of logits, relative to the largest one. */
const TOLERANCE = 1e-3;

/** Returns logits after tokens, given the previous ones. Used for projects whose token loop is in this benchmark. */
export interface StepDecoder {
  /** Resets the state. */
  reset(): void;
  step(tokens: readonly number[]): Promise<Float32Array>;
  close(): Promise<void>;
}

/** Measures all sides. */
export async function compareDecodeOnGpu(
  run: GpuRun,
): Promise<Pick<Result, "works" | "ratios">> {
  const demo = await readDemo();
  const { name } = run.adapter;
  return await interleave(
    {
      [OURS]: () => openHere(run),
      "node-llama-cpp": () => openThere(run, demo),
      "onnxruntime-node": async () => stepping(await ortDecoder(demo)),
      "@tensorflow/tfjs": async () => stepping(await tfDecoder(name, demo)),
    },
    {
      prefill: {
        work: `prefill, ${DEMO_WORK.prompt} tokens, bundled checkpoint`,
        amount: DEMO_WORK.prompt,
        unit: "tokens/s",
      },
      decode: {
        work: "decode, a token, bundled checkpoint",
        amount: 1,
        unit: "tokens/s",
      },
    },
    {
      ...run,
      tolerance: TOLERANCE,
      // On its CPU provider the same model differs by 1e-6.
      tolerances: { "onnxruntime-node": 2e-2 },
      absent: {
        "@jax-js/jax":
          "no decoder is written for it: a kernel is compiled anew for every length of the cache",
      },
    },
  );
}

/** Creates a side from a generator. */
function generating(
  once: () => Promise<Timed>,
  rest: Pick<Side, "values" | "close">,
): Side {
  return {
    ...rest,
    once: async () => {
      const { prefillMs, decodeMs, tokens } = await once();
      const decode = decodeMs / (tokens.length - 1);
      return { ms: { prefill: prefillMs, decode }, tokens };
    },
  };
}

/** Creates a side with this benchmark's greedy loop. */
function stepping(decoder: StepDecoder): Side {
  const best = (logits: Float32Array) => logits.indexOf(Math.max(...logits));
  return generating(async () => {
    decoder.reset();
    const started = performance.now();
    const tokens = [best(await decoder.step(DEMO_PROMPT))];
    const prefilled = performance.now();
    while (tokens.length < DEMO_WORK.newTokens) {
      tokens.push(best(await decoder.step(tokens.slice(-1))));
    }
    return {
      prefillMs: prefilled - started,
      decodeMs: performance.now() - prefilled,
      tokens,
    };
  }, {
    values: async () => {
      decoder.reset();
      return await decoder.step(DEMO_PROMPT);
    },
    close: () => decoder.close(),
  });
}

async function openHere({ adapter, threads }: GpuRun): Promise<Side> {
  const target = await loadTarget(fileURLToPath(DEMO_FOLDER), nodeFiles());
  const opened = await openOurs(target, {
    adapter: [adapter.number],
    threads,
    next: {},
    need: {
      tokens: DEMO_WORK.prompt,
      sequences: 1,
      context: DEMO_WORK.prompt + DEMO_WORK.newTokens,
    },
  });
  const decoder = new Decoder(opened.session, decoderShape(opened.plan)!);
  return generating(async () => {
    opened.session.reset();
    const { sequences, prefillMs, decodeMs } = await generate(
      decoder,
      [DEMO_PROMPT],
      {
        maxNewTokens: DEMO_WORK.newTokens,
        stop: new Set(),
        temperature: 0,
        now: () => performance.now(),
      },
    );
    return { prefillMs, decodeMs, tokens: sequences[0]!.tokens };
  }, {
    values: async () => {
      opened.session.reset();
      const last = [DEMO_WORK.prompt - 1];
      const [next] = await decoder.next(packPrompts([DEMO_PROMPT]), last);
      return next!.logits.slice();
    },
    close: () => opened.close(),
  });
}

async function openThere(run: GpuRun, demo: Demo): Promise<Side> {
  const file = join(run.folder, "demo.gguf");
  await writeOlmoeGguf(fileURLToPath(DEMO_FOLDER), { file, matrices: "f32" });
  const llama = await openLlama({
    file,
    vulkan: true,
    threads: run.threads,
    context: demo.config.max_position_embeddings,
    vocabulary: demo.config.vocab_size,
    prompt: DEMO_PROMPT,
    newTokens: DEMO_WORK.newTokens,
  });
  const context = await llama.context(run.threads);
  return generating(() => context.generate(), {
    values: () => context.logits(),
    close: () => llama.close(),
  });
}
