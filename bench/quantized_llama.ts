/**
 * Files that `quantize` writes in llama.cpp. Of the bundled checkpoint, quantized: greedy tokens after prompts against
 * ours, and the largest difference of logits. Of checkpoints with recorded references, in f32: logits of all tokens of
 * a prompt. Of some of their families with random weights of complete blocks, quantized: the same. Of gpt-oss, with its
 * MXFP4 experts: greedy tokens. Prints why llama.cpp rejects a file. Linux on x64 only; `bench/peers` installs
 * llama.cpp. With names of checkpoints, compares only those.
 */

import { execFileSync } from "node:child_process";
import {
  cpSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { nodeFiles } from "../cli/files.ts";
import { packageFile } from "../cli/package_file.ts";
import {
  Decoder,
  decoderShape,
  generate,
  loadTarget,
  openTarget,
  openTokenizer,
  packPrompts,
  QUANTIZE_TARGETS,
  quantizeCheckpoint,
  type QuantizeTargetName,
  type Rule,
} from "../engine/mod.ts";
import type { Activations } from "../spec/weights/activations.ts";
import { writeTokenizer } from "./peers/byte_tokenizer.ts";
import { openLlama } from "./peers/llama.ts";

const PROMPTS = [
  "Once upon a time there was a",
  "The king said to his daughter",
  "In the middle of the forest",
  "'Dear me!' cried the Rabbit",
];

const NEW_TOKENS = 48;

/**
 * Recorded checkpoints. llama.cpp has no layers without experts in Qwen2 and Qwen3-VL, which the recorded ones have.
 */
const FAMILIES = [
  ...["olmoe-16e", "mixtral-8e", "qwen3moe-16e", "dots1-16e", "glm4moe-16e"],
  ...["minimaxm2-16e", "ernie45moe-16e", "deepseekv3-16e"],
  ...["hunyuanmoe-12e", "deepseekv2-16e", "gptoss-8e", "granitemoe-8e"],
  ...["lfm2moe-16e", "qwen3next-16e", "qwen35moe-16e"],
  ...["gemma4moe-12e", "granitemoehybrid-12e", "llama4-8e", "nemotronh-16e"],
  ...["deepseekv32-16e", "glmmoedsa-16e", "glm4moelite-16e"],
  ...["glm4vmoe-12e", "solaropen-12e", "qwen3omnimoe-8e"],
  ...["afmoe-12e", "bailingmoe-16e", "exaonemoe-12e", "hyv3-12e"],
  ...["mimov2-12e", "step3p5-12e", "nemotronhlatent-12e", "kimik25-12e"],
  ...["mistral4-12e", "laguna-12e", "kimilinear-12e", "kimik3-12e"],
  ...["bailingmoev3-12e", "cohere2moe-12e", "cohere2moe-12e-wrapped"],
  ...["mellum-12e", "gptoss-8e-mxfp4"],
];

const YARN = {
  rope_type: "yarn",
  factor: 4,
  original_max_position_embeddings: 8,
};

/**
 * Fields of a config.json in place of the recorded ones. llama.cpp has one magnitude of scaled positions for both uses,
 * rounds the bounds of YaRN, which gpt-oss does not, has another choice of expert groups than DeepSeek-V2, and one base
 * of rotary frequencies for all layers of Mellum.
 */
const CHANGED: { readonly [name: string]: object } = {
  "step3p5-12e": {
    rope_scaling: {
      rope_type: "llama3",
      factor: 2,
      original_max_position_embeddings: 131072,
      low_freq_factor: 1,
      high_freq_factor: 32,
    },
  },
  "deepseekv2-16e": { topk_method: "greedy", n_group: 1, topk_group: 1 },
  "deepseekv3-16e": {
    rope_scaling: { ...YARN, mscale: 0.8, mscale_all_dim: 0.8 },
  },
  "gptoss-8e": { rope_scaling: { rope_type: "default" } },
  "gptoss-8e-mxfp4": { rope_scaling: { rope_type: "default" } },
  "llama4-8e": { attention_chunk_size: 8192, floor_scale: 8192 },
  "mellum-12e": {
    rope_parameters: {
      full_attention: { ...YARN, rope_theta: 500000 },
      sliding_attention: { rope_theta: 500000 },
    },
  },
  "qwen3moe-16e": { rope_scaling: { ...YARN, beta_fast: 2 } },
};

/** Kimi models with as many heads in both kinds of attention, and with one epsilon of all norms. */
const KIMI = {
  rms_norm_eps: 1e-6,
  linear_attn_config: {
    head_dim: 16,
    num_heads: 4,
    short_conv_kernel_size: 4,
    kda_layers: [1, 2, 4],
    full_attn_layers: [3, 5],
  },
};

/**
 * Fields of other checkpoints, with random weights: llama.cpp has equal sizes of keys and values, heads of Ling that
 * are as long as a row together, indexers of 64 elements or more, and one epsilon of all norms. Of the 12 tokens, an
 * indexer chooses 6.
 */
const REDRAWN: { readonly [name: string]: object } = {
  "qwen35moe-16e": { linear_key_head_dim: 16 },
  "bailingmoe-16e": { head_dim: 12 },
  "deepseekv32-16e": { index_head_dim: 64, index_topk: 6 },
  "glmmoedsa-16e": {
    rms_norm_eps: 1e-6,
    index_head_dim: 64,
    index_topk: 6,
  },
  "kimilinear-12e": KIMI,
  "kimik3-12e": {
    ...KIMI,
    linear_attn_config: {
      ...KIMI.linear_attn_config,
      use_full_rank_gate: true,
      gate_lower_bound: -5,
    },
  },
  // Files have no feed-forward layers without experts.
  "nemotronh-16e": {
    layers_block_type: ["mamba", "moe", "attention", "moe", "mamba", "moe"],
  },
  "nemotronhlatent-12e": {
    layers_block_type: ["mamba", "moe", "attention", "moe", "mamba", "moe"],
  },
};

/**
 * Fields of small checkpoints with random weights, whose rows consist of complete blocks. All experts are chosen,
 * because rounded activations would change some choices between random logits.
 */
const WIDE: { readonly [name: string]: object } = {
  "olmoe-16e": {
    hidden_size: 256,
    intermediate_size: 256,
    num_experts_per_tok: 16,
  },
  "mixtral-8e": {
    hidden_size: 256,
    intermediate_size: 512,
    num_experts_per_tok: 8,
  },
  "qwen3moe-16e": {
    hidden_size: 256,
    head_dim: 64,
    moe_intermediate_size: 256,
    num_experts_per_tok: 16,
  },
};

/** Formats of these checkpoints. */
const WIDE_FORMATS = ["q8_0", "q4_k"] as const;

/** Checkpoints whose files have experts in MXFP4, with rules for their other matrices. */
const PACKED: { readonly [name: string]: readonly Rule[] } = {
  "gptoss-8e-mxfp4": ["*.self_attn.*", "*.embed_tokens.*", "lm_head.*"]
    .map((pattern) => ({ pattern, type: "F32" })),
};

const PACKED_PROMPTS = [
  [5, 60, 7, 3, 100, 42, 17, 9, 200, 33, 71, 8],
  [17, 80, 3],
  [250, 4, 99, 31, 8, 120],
  Array.from({ length: 24 }, (_, i) => (37 * i + 11) % 256),
];

/**
 * Largest allowed difference of logits of quantized weights, relative to the largest: both sides quantize activations.
 */
const QUANTIZED_LIMIT = 2e-2;

/**
 * Largest allowed difference of logits, relative to the largest. llama.cpp rounds GELU to f16. Decays of K3 are
 * rounded.
 */
const LIMITS: { readonly [name: string]: number } = {
  "gemma4moe-12e": 2e-3,
  "kimik3-12e": 3e-5,
};

const files = nodeFiles();
const checkpoint = packageFile("examples/demo-lm");
const folder = mkdtempSync(join(tmpdir(), "switchyard-"));
const tokenizer = (await openTokenizer(checkpoint, files))!;
const prompts: number[][] = [];
for (const prompt of PROMPTS) prompts.push(await tokenizer.encode(prompt));
tokenizer.close();
try {
  const only = process.argv.slice(2);
  for (const [name, { writes }] of Object.entries(QUANTIZE_TARGETS)) {
    if (writes[0] !== "file" || only.length > 0) continue;
    const to = name as QuantizeTargetName;
    const file = join(folder, `${to}.gguf`);
    await quantizeCheckpoint(checkpoint, files, { to, out: file });
    await compare(to, { file, prompts, vocabulary: 2048 });
  }
  for (const name of only.length > 0 ? only : FAMILIES) {
    await compareFamily(name);
    if (name in WIDE) await compareWide(name);
    if (name in PACKED) await comparePacked(name);
  }
} finally {
  rmSync(folder, { recursive: true });
}

/** Compares greedy tokens after prompts, and the logits after each prompt. */
async function compare(
  title: string,
  { file, prompts, vocabulary }: {
    readonly file: string;
    readonly prompts: readonly (readonly number[])[];
    readonly vocabulary: number;
  },
): Promise<void> {
  const found = await ours(file, prompts);
  for (const [i, prompt] of prompts.entries()) {
    const llama = await openLlama({
      file,
      prompt,
      threads: 1,
      context: 256,
      vocabulary,
      newTokens: NEW_TOKENS,
    });
    const context = await llama.context(1);
    const logits = await context.logits();
    const { tokens } = await context.generate();
    await llama.close();
    const { sequence, last, margins } = found[i]!;
    const [worst, largest] = distance(logits, last);
    const same = sequence.findIndex((token, at) => token !== tokens[at]);
    const margin = same < 0 ? Infinity : margins[same]!;
    console.log(
      `${title}, prompt ${i + 1}: ${
        same < 0
          ? "all"
          : `the first ${same} (then a margin of ${margin.toExponential(1)})`
      } of ${NEW_TOKENS} tokens equal, logits within ${
        (worst / largest).toExponential(1)
      } of the largest`,
    );
    // Either side may be off by the difference of logits.
    if (same >= 0 && margin > 2 * worst) process.exitCode = 1;
  }
}

/** Compares the logits of a recorded checkpoint, whose vocabulary has at most 256 tokens. */
async function compareFamily(name: string): Promise<void> {
  const isRedrawn = name in REDRAWN;
  const fields = CHANGED[name] ?? REDRAWN[name];
  await compareLogits(name, {
    from: copied(name, { to: name, fields, isRedrawn }),
    options: { to: "q8_0", rules: [{ pattern: "*", type: "F32" }] },
    limit: LIMITS[name] ?? 1e-5,
  });
}

/** Compares the logits of a family with random weights of complete blocks, in each format. */
async function compareWide(name: string): Promise<void> {
  const from = copied(name, {
    to: `${name}-wide`,
    fields: WIDE[name],
    isRedrawn: true,
  });
  for (const to of WIDE_FORMATS) {
    await compareLogits(`${name} with wide rows, ${to}`, {
      from,
      options: { to },
      limit: QUANTIZED_LIMIT,
      isQuantized: true,
    });
  }
}

/** Compares the greedy tokens of a checkpoint whose packed experts are copied to the file. */
async function comparePacked(name: string): Promise<void> {
  const from = copied(name, {
    to: `${name}-packed`,
    fields: CHANGED[name],
    isRedrawn: false,
  });
  writeTokenizer(from, 256);
  const file = `${from}.gguf`;
  const options = { to: "mxfp4", rules: PACKED[name]!, out: file } as const;
  await quantizeCheckpoint(from, files, options);
  await compare(`${name} with packed experts`, {
    file,
    prompts: PACKED_PROMPTS,
    vocabulary: 256,
  });
}

/** Copies a recorded checkpoint to a folder. Returns its path. */
function copied(
  name: string,
  { to, fields, isRedrawn }: {
    /** Name of the folder. */
    readonly to: string;
    /** Fields of its config.json in place of the recorded ones. */
    readonly fields: object | undefined;
    /** Whether its weights are random. */
    readonly isRedrawn: boolean;
  },
): string {
  const from = join(folder, to);
  cpSync(packageFile(`test/references/${name}`), from, { recursive: true });
  if (fields) {
    const config = JSON.parse(
      readFileSync(join(from, "config.json"), "utf8"),
    ) as { readonly text_config?: object };
    const { text_config: text = config } = config;
    const changed = { ...text, ...fields };
    writeFileSync(
      join(from, "config.json"),
      JSON.stringify(
        text === config ? changed : { ...config, text_config: changed },
      ),
    );
  }
  if (isRedrawn) {
    const weights = join(from, "model.safetensors");
    for (const name of readdirSync(from)) {
      if (name.endsWith(".safetensors")) rmSync(join(from, name));
    }
    const argv = ["run", from, "--adapter", "cpu", "--random"];
    execFileSync(process.execPath, [
      packageFile("bin/switchyard.mjs"),
      ...argv,
      "--save-weights",
      weights,
    ]);
  }
  return from;
}

/** Compares the logits of a checkpoint without a tokenizer. Prints the reason if llama.cpp rejects its file. */
async function compareLogits(
  title: string,
  { from, options, limit, isQuantized = false }: {
    readonly from: string;
    readonly options: Pick<
      Parameters<typeof quantizeCheckpoint>[2],
      "to" | "rules"
    >;
    /** Largest allowed difference, relative to the largest. */
    readonly limit: number;
    /** Whether activations are quantized: both are then also compared with ours in f32. */
    readonly isQuantized?: boolean;
  },
): Promise<void> {
  const target = await loadTarget(from, files);
  if (target.kind !== "checkpoint") throw new Error(`no checkpoint: ${from}`);
  const { vocabulary } = target.checkpoint.published.decoder;
  writeTokenizer(from, vocabulary);
  const file = `${from}-${options.to}.gguf`;
  await quantizeCheckpoint(from, files, { ...options, out: file });
  const prompt = [5, 60, 7, 3, 100, 42, 17, 9, 200, 33, 71, 8]
    .map((token) => token % vocabulary);
  let theirs: Float32Array;
  try {
    const llama = await openLlama({
      file,
      prompt,
      threads: 1,
      context: 64,
      vocabulary,
      newTokens: 1,
    });
    theirs = await (await llama.context(1)).allLogits();
    await llama.close();
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    console.log(`${title}: not compared, llama.cpp fails: ${reason}`);
    process.exitCode = 1;
    return;
  }
  const mine = await logitsOf(file, prompt, "q8");
  const [worst, largest] = distance(theirs, mine);
  let exact = "";
  if (isQuantized) {
    const wanted = await logitsOf(file, prompt, "f32");
    const [ofTheirs, ofOurs] = [theirs, mine].map((logits) =>
      (distance(wanted, logits)[0] / largest).toExponential(1)
    );
    exact =
      `; with f32 activations, ours change by ${ofOurs} and differ from llama.cpp's by ${ofTheirs}`;
  }
  console.log(
    `${title}: logits within ${
      (worst / largest).toExponential(1)
    } of the largest${exact}`,
  );
  if (!(worst / largest < limit)) process.exitCode = 1;
}

/** Our logits of all tokens of a prompt. */
async function logitsOf(
  file: string,
  prompt: readonly number[],
  activations: Activations,
): Promise<Float32Array> {
  const opened = await openTarget(await loadTarget(file, files), files, {
    sharing: "shared",
    adapter: "cpu",
    activations,
    need: { tokens: 16, sequences: 1, context: 64 },
  });
  const decoder = new Decoder(opened.session, decoderShape(opened.plan)!);
  const { logits } = await decoder.outputs(packPrompts([prompt]));
  await opened.close();
  return Float32Array.from(logits!.data as Float32Array);
}

/** The largest difference, and the largest size of the first. */
function distance(
  theirs: Float32Array,
  mine: ArrayLike<number>,
): readonly [worst: number, largest: number] {
  let [worst, largest] = [0, 0];
  theirs.forEach((x, at) => {
    const difference = Math.abs(x - mine[at]!);
    worst = difference <= worst ? worst : difference;
    largest = Math.max(largest, Math.abs(x));
  });
  return [worst, largest];
}

/** Greedy tokens after each prompt, and the logits after the prompt. */
async function ours(file: string, prompts: readonly (readonly number[])[]) {
  const results: {
    sequence: readonly number[];
    /** Distance of the two largest logits before each token. */
    margins: readonly number[];
    last: Float32Array;
  }[] = [];
  const opened = await openTarget(await loadTarget(file, files), files, {
    sharing: "shared",
    adapter: "cpu",
    need: { tokens: 64, sequences: 1, context: 256 },
  });
  const decoder = new Decoder(opened.session, decoderShape(opened.plan)!);
  for (const prompt of prompts) {
    opened.session.reset();
    const { sequences } = await generate(decoder, [prompt], {
      maxNewTokens: NEW_TOKENS,
      stop: new Set(),
      logprobs: 2,
    });
    opened.session.reset();
    const [next] = await decoder.next(packPrompts([prompt]), [
      prompt.length - 1,
    ]);
    const [{ tokens, logprobs = [] } = { tokens: [] }] = sequences;
    results.push({
      sequence: tokens,
      margins: logprobs.map(({ top }) => top[0]!.logprob - top[1]!.logprob),
      last: next!.logits,
    });
  }
  await opened.close();
  return results;
}
