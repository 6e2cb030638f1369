/** GGUF files: block types, names, keys and tokenizers. */
// needs: cpu
// rotates with: engine/gguf/

import { createHash } from "node:crypto";
import { readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import {
  type GgufData,
  type GgufTensor,
  vocabularyKeys,
  writeGguf,
} from "../bench/peers/gguf.ts";
import { writeOlmoeGguf } from "../bench/peers/olmoe_gguf.ts";
import {
  SMALL_VOCABULARY,
  smallKeys,
  writeSmallGguf,
} from "../bench/peers/small_gguf.ts";
import {
  BLOCK_TYPES,
  blocksOf,
  digestOf,
  valuesOf,
} from "../bench/peers/gguf_blocks.ts";
import {
  loadTarget,
  openTarget,
  readTensors,
  runOpened,
  writeSafetensors,
} from "../engine/mod.ts";
import { endTokens } from "../engine/gguf/end_tokens.ts";
import { ARCHITECTURES as GGUF_ARCHITECTURES } from "../engine/gguf/architectures.ts";
import { ARCHITECTURES } from "../models/published.ts";
import { GGUF_TYPES } from "../engine/gguf/blocks.ts";
import { configOf } from "../engine/gguf/config.ts";
import { readGguf } from "../engine/gguf/header.ts";
import { SPLITS } from "../engine/gguf/pre_tokenizers.ts";
import { tokenizerOf } from "../engine/gguf/tokenizer.ts";
import { tokenizerKeys } from "../engine/gguf/write_tokenizer.ts";
import type { GgufValue } from "../engine/gguf/write.ts";
import { listWeightFiles } from "../engine/checkpoint/checkpoint.ts";
import type { HostTensor } from "../runtime/mod.ts";
import type { Activations } from "../spec/weights/activations.ts";
import type { Dispatcher } from "../spec/strategies.ts";
import { whyNotNative } from "../runtime/native/mod.ts";
import {
  checkpointFolder,
  files,
  meshOf,
  padBatch,
} from "./helpers/checkpoints.ts";
import { cpuMachine } from "./helpers/cpu_machine.ts";
import { inTurn, isInTurn, repeatWith } from "./helpers/seed.ts";
import { switchyard, temporaryFolder } from "./helpers/cli.ts";
import { skipUnasked } from "./helpers/needs.ts";

const skip = skipUnasked("cpu");

/** SHA-256 of 64 blocks decoded by ggml's `dequantize_row_*`, recorded by `bench/ggml_blocks.ts --record`. */
const RECORDED: { readonly [type: string]: string } = JSON.parse(
  readFileSync(
    new URL("references/ggml_blocks.json", import.meta.url),
    "utf8",
  ),
) as { [type: string]: string };

t.test("every family has a GGUF architecture, or docs/quantized.md states why not", (t) => {
  const page = readFileSync(
    new URL("../docs/quantized.md", import.meta.url),
    "utf8",
  );
  const known = Object.values(GGUF_ARCHITECTURES).flatMap((row) => [
    row.architecture,
    ...row.others ?? [],
  ]);
  const others = ARCHITECTURES.filter((name) => !known.includes(name));
  t.ok(others.includes("LongcatFlashForCausalLM"));
  for (const name of others) t.match(page, name);
  t.end();
});

t.test("blocks are decoded like ggml", (t) => {
  for (const type of BLOCK_TYPES) {
    const values = valuesOf(type, blocksOf(type, 64, type.number));
    t.equal(digestOf(values), RECORDED[type.name], type.name);
  }
  t.end();
});

async function outputsOf(
  path: string,
  mesh: string,
  {
    adapter,
    activations = "f32",
    deduplicate = false,
    dispatcher,
    prompts = [[5, 100, 7, 3], [9, 2]],
  }: {
    readonly adapter: "cpu" | "native";
    readonly activations?: Activations;
    readonly deduplicate?: boolean;
    readonly dispatcher?: Dispatcher;
    readonly prompts?: readonly (readonly number[])[];
  },
): Promise<string> {
  const opened = await openTarget(await loadTarget(path, files), files, {
    sharing: "shared",
    adapter,
    mesh: meshOf(mesh),
    activations,
    deduplicate,
    ...dispatcher ? { dispatcher } : {},
    need: {
      tokens: prompts.flat().length,
      sequences: prompts.length,
      context: 16,
    },
  });
  // On the native device, matrices are mapped from the file as blocks.
  const inBlocks = opened.plan.weights.filter(({ source }) =>
    BLOCK_TYPES.some(({ block }) => source.endsWith(`:${block}`))
  );
  t.equal(inBlocks.length > 1, adapter === "native", "weights in blocks");
  try {
    const outputs = await runOpened(opened, padBatch(prompts));
    t.ok(outputs["logits"]!.data.every((x: number) => Number.isFinite(x)));
    return createHash("sha256").update(writeSafetensors(outputs)).digest("hex");
  } finally {
    await opened.close();
  }
}

t.test(
  "every block type gives the bits of the same values in f32",
  { skip },
  async (t) => {
    const folder = temporaryFolder(t);
    const [blocks, plain] = [join(folder, "q.gguf"), join(folder, "f32.gguf")];
    writeSmallGguf(blocks, { plain });
    const wanted = await outputsOf(plain, "ep=1", { adapter: "cpu" });
    const native = await whyNotNative() === undefined ? "native" : "cpu";
    t.equal(
      await outputsOf(blocks, "ep=1", { adapter: "cpu" }),
      wanted,
      "ep=1",
    );
    t.equal(
      await outputsOf(blocks, "ep=2", { adapter: native }),
      wanted,
      "ep=2",
    );
    t.equal(
      await outputsOf(blocks, "tp=2,ep=2", { adapter: "cpu" }),
      wanted,
      "tp=2,ep=2",
    );
  },
);

t.test(
  "blocks that segments of sums divide give the bits of the same values in f32",
  { skip },
  async (t) => {
    const folder = temporaryFolder(t);
    const [blocks, plain] = [join(folder, "q.gguf"), join(folder, "f32.gguf")];
    // Segments of 12 elements.
    writeSmallGguf(blocks, { plain, width: 96 });
    const adapters = await whyNotNative() === undefined
      ? ["cpu", "native"] as const
      : ["cpu"] as const;
    for (const prompts of [[[5]], [[5, 100, 7, 3], [9, 2]]]) {
      const wanted = await outputsOf(plain, "ep=1", {
        adapter: "cpu",
        prompts,
      });
      for (const adapter of adapters) {
        for (const mesh of ["ep=1", "tp=2,ep=2"]) {
          t.equal(
            await outputsOf(blocks, mesh, { adapter, prompts }),
            wanted,
            `${mesh} on '${adapter}', ${prompts.flat().length} tokens`,
          );
        }
      }
    }
  },
);

t.test(
  "quantized activations have the same bits on every mesh and device",
  { skip },
  async (t) => {
    const folder = temporaryFolder(t);
    const [blocks, plain] = [join(folder, "q.gguf"), join(folder, "f32.gguf")];
    writeSmallGguf(blocks, { plain });
    const wanted = await outputsOf(blocks, "ep=1", {
      adapter: "cpu",
      activations: "q8",
    });
    t.not(
      wanted,
      await outputsOf(blocks, "ep=1", { adapter: "cpu" }),
      "different from those with f32 activations",
    );
    const native = await whyNotNative() === undefined ? "native" : "cpu";
    for (const mesh of inTurn(["ep=1", "ep=2", "ep=4", "tp=2,ep=2"], 4)) {
      t.equal(
        await outputsOf(blocks, mesh, { adapter: native, activations: "q8" }),
        wanted,
        mesh,
      );
    }
    t.equal(
      await outputsOf(blocks, "tp=2", { adapter: "cpu", activations: "q8" }),
      wanted,
      "tp=2",
    );
    const once = await outputsOf(blocks, "ep=4", {
      adapter: "cpu",
      activations: "q8",
      deduplicate: true,
    });
    t.equal(once, wanted, "ep=4, deduplicated");
    for (const adapter of inTurn([native, "cpu"] as const, 2)) {
      const gathered = await outputsOf(blocks, "tp=2,ep=2", {
        adapter,
        activations: "q8",
        dispatcher: "gatherWeights",
      });
      t.equal(gathered, wanted, `weights are gathered, ${adapter}`);
    }
  },
);

t.test(
  "table rows give the bits of the same values in f32, and memory is as planned",
  { skip },
  async (t) => {
    const folder = temporaryFolder(t);
    const at = (name: string) => join(folder, name);
    const write = (
      name: string,
      dataOf: (type: typeof BLOCK_TYPES[number], raw: Uint8Array) => GgufData,
    ) => {
      const tensors = BLOCK_TYPES.map((type, i) => {
        const raw = blocksOf(type, 14 * 512 / type.elements, i);
        return [`t${i}`, { shape: [14, 512], data: dataOf(type, raw) }];
      });
      const parts = writeGguf(smallKeys(), Object.fromEntries(tensors));
      writeFileSync(at(name), Buffer.concat([...parts]));
    };
    write("q.gguf", ({ number }, blocks) => ({ type: number, blocks }));
    write("f32.gguf", valuesOf);
    const rows = BLOCK_TYPES.map((_, i) => `y${i}: of("t${i}")`);
    writeFileSync(
      at("m.ts"),
      `import { embedding, model } from "switchyard-moe";
export const m = model({ token: 9, vocab: 14, embed: 512 }, (m) => {
  const ids = m.input("ids", "token", { dtype: "i32" });
  const of = (name: string) =>
    embedding(m.param(name, "vocab embed"), ids, "vocab");
  return { ${rows.join(", ")} };
});
`,
    );
    const run = async (weights: string, ...argv: string[]) => {
      const { code, out, err } = await switchyard([
        ...["run", at("m.ts"), "--weights", at(weights), "--random", ...argv],
        ...["--outputs", at("out")],
      ]);
      t.equal(code, 0, err);
      const [, bytes] = /^rank 0: (\d+) bytes of memory/m.exec(out)!;
      return { rows: readFileSync(at("out")), bytes: Number(bytes) };
    };
    const wanted = await run("f32.gguf", "--adapter", "cpu");
    const native = await whyNotNative() === undefined ? "native" : "cpu";
    for (
      const argv of [
        ["--adapter", native],
        ...inTurn([
          ["--adapter", "cpu"],
          ["--adapter", native, "--mesh", "tp=2", "--place", "vocab=tp"],
        ], 2),
      ]
    ) {
      const found = await run("q.gguf", ...argv);
      t.ok(found.rows.equals(wanted.rows), argv.join(" "));
      // With the mesh, 9 of 14 rows are returned in f32.
      if (argv.includes("--mesh")) continue;
      t.ok(found.bytes < 0.55 * wanted.bytes, `${found.bytes} bytes`);
    }
    // Embeddings and output share a matrix, which is mapped on the native device.
    const tied = at("tied.gguf");
    const argv = ["quantize", checkpointFolder("granitemoe-8e"), "--out", tied];
    t.equal((await switchyard([...argv, "--to", "q8_0"])).code, 0);
    writeFileSync(at("machine.json"), JSON.stringify(cpuMachine(native)));
    const bounds = "--max-tokens 24 --max-sequences 3 --max-context 8";
    for (const mesh of inTurn(["ep=1", "tp=2"], 2)) {
      const flags = ["--mesh", mesh, ...bounds.split(" ")];
      const planned = await switchyard([
        ...["plan", tied, "--target", at("machine.json"), "--json", ...flags],
      ]);
      t.equal(planned.code, 0, planned.err);
      const { ranks } = JSON.parse(planned.out) as {
        ranks: { bytes: { weights: number; total: number } }[];
      };
      const { out } = await switchyard([
        ...["run", tied, "--random", "--adapter", native, ...flags],
      ]);
      const { weights, total } = ranks[0]!.bytes;
      t.match(out, `rank 0: ${total} bytes of memory`);
      if (mesh !== "ep=1") continue;
      t.ok(weights <= 1.1 * statSync(tied).size, `${weights} bytes`);
    }
  },
);

/** Logits after each token of a prompt, recorded by `bench/llama_logits.ts`. */
const LLAMA: {
  readonly prompt: readonly number[];
  readonly logits: readonly number[];
} = JSON.parse(
  readFileSync(
    new URL("references/llama_logits.json", import.meta.url),
    "utf8",
  ),
);

/** Max difference to logits with f32 activations, relative to the largest logit. */
const TOLERANCE = 2e-2;

async function logitsOf(
  path: string,
  prompt: readonly number[],
  activations?: Activations,
): Promise<Float32Array> {
  const opened = await openTarget(await loadTarget(path, files), files, {
    sharing: "shared",
    adapter: "cpu",
    need: { tokens: 16, sequences: 1, context: 16 },
    ...activations ? { activations } : {},
  });
  const quantized = opened.plan.weights.some(({ activations }) => activations);
  const { logits } = await runOpened(opened, padBatch([prompt]));
  await opened.close();
  if (quantized !== (activations !== "f32")) {
    throw new Error("the plan states other activations");
  }
  return logits!.data as Float32Array;
}

t.test(
  "logits with quantized activations are as exact as llama.cpp's",
  { skip },
  async (t) => {
    const file = join(temporaryFolder(t), "small.gguf");
    writeSmallGguf(file);
    const { prompt, logits } = LLAMA;
    const exact = await logitsOf(file, prompt, "f32");
    // The default of GGUF files.
    const quantized = await logitsOf(file, prompt);
    t.equal(exact.length, logits.length);
    const largest = Math.max(...exact.map(Math.abs));
    const maxError = (of: ArrayLike<number>) =>
      Math.max(...exact.map((logit, i) => Math.abs(logit - of[i]!))) / largest;
    const [ours, theirs] = [maxError(quantized), maxError(logits)];
    t.ok(ours < TOLERANCE, `off by ${ours} of the largest`);
    t.ok(ours < 1.2 * theirs, `off by ${ours}, llama.cpp by ${theirs}`);
    const best = (of: ArrayLike<number>, row: number) => {
      const each = Array.from(of).slice(
        row * SMALL_VOCABULARY,
        (row + 1) * SMALL_VOCABULARY,
      );
      const top = each.indexOf(Math.max(...each));
      const second = Math.max(...each.filter((_, i) => i !== top));
      return { top, margin: (each[top]! - second) / largest };
    };
    for (let row = 0; row < prompt.length; row++) {
      const { top, margin } = best(logits, row);
      if (margin < 2 * (ours + theirs)) continue;
      t.equal(best(quantized, row).top, top, `row ${row}`);
    }
  },
);

/** A reference checkpoint in llama.cpp's format: its keys, and its tensor names by ours. */
interface Converted {
  readonly checkpoint: string;
  readonly architecture: string;
  readonly keys: (config: Config) => { readonly [key: string]: number };
  readonly names: { readonly [ours: string]: string };
  /** Queries and keys are stored with adjacent rotated pairs. */
  readonly interleaved?: true;
  /** Routed experts are scaled, and their weights normalized. */
  readonly scales?: true;
}

type Config = { readonly [field: string]: number };

const LAYER_NAMES = {
  "input_layernorm": "attn_norm",
  "self_attn.q_proj": "attn_q",
  "self_attn.k_proj": "attn_k",
  "self_attn.v_proj": "attn_v",
  "self_attn.o_proj": "attn_output",
  "self_attn.q_norm": "attn_q_norm",
  "self_attn.k_norm": "attn_k_norm",
  "post_attention_layernorm": "ffn_norm",
  "mlp.gate": "ffn_gate_inp",
  "mlp.experts.*.gate_proj": "ffn_gate_exps",
  "mlp.experts.*.up_proj": "ffn_up_exps",
  "mlp.experts.*.down_proj": "ffn_down_exps",
  "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
  "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
  "mlp.shared_expert.up_proj": "ffn_up_shexp",
  "mlp.shared_expert.down_proj": "ffn_down_shexp",
  "mlp.gate_proj": "ffn_gate",
  "mlp.up_proj": "ffn_up",
  "mlp.down_proj": "ffn_down",
  "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
  "mlp.shared_experts.up_proj": "ffn_up_shexp",
  "mlp.shared_experts.down_proj": "ffn_down_shexp",
  "block_sparse_moe.gate": "ffn_gate_inp",
  "block_sparse_moe.experts.*.w1": "ffn_gate_exps",
  "block_sparse_moe.experts.*.w3": "ffn_up_exps",
  "block_sparse_moe.experts.*.w2": "ffn_down_exps",
};

const CONVERTED: readonly Converted[] = [
  {
    checkpoint: "mixtral-8e",
    architecture: "llama",
    keys: (c) => ({
      feed_forward_length: c["intermediate_size"]!,
      expert_count: c["num_local_experts"]!,
    }),
    names: LAYER_NAMES,
    interleaved: true,
  },
  {
    checkpoint: "qwen2moe-8e",
    architecture: "qwen2moe",
    keys: (c) => ({
      feed_forward_length: c["intermediate_size"]!,
      expert_feed_forward_length: c["moe_intermediate_size"]!,
      expert_shared_feed_forward_length: c["shared_expert_intermediate_size"]!,
      expert_count: c["num_experts"]!,
    }),
    names: LAYER_NAMES,
  },
  {
    checkpoint: "dots1-16e",
    architecture: "dots1",
    keys: sharedKeys,
    scales: true,
    names: LAYER_NAMES,
  },
  {
    checkpoint: "glm4moe-16e",
    architecture: "glm4moe",
    keys: (c) => ({
      ...sharedKeys(c),
      "rope.dimension_count": c["head_dim"]! / 2,
    }),
    scales: true,
    names: {
      ...LAYER_NAMES,
      "post_attention_layernorm": "post_attention_norm",
    },
  },
  {
    checkpoint: "minimaxm2-16e",
    architecture: "minimax-m2",
    keys: (c) => ({
      feed_forward_length: c["intermediate_size"]!,
      expert_feed_forward_length: c["intermediate_size"]!,
      expert_count: c["num_local_experts"]!,
      expert_gating_func: 2,
      "attention.key_length": c["head_dim"]!,
      "rope.dimension_count": c["head_dim"]! / 2,
    }),
    names: LAYER_NAMES,
  },
  {
    checkpoint: "ernie45moe-16e",
    architecture: "ernie4_5-moe",
    keys: (c) => ({
      feed_forward_length: c["intermediate_size"]!,
      expert_feed_forward_length: c["moe_intermediate_size"]!,
      expert_count: c["moe_num_experts"]!,
      expert_used_count: c["moe_k"]!,
      expert_shared_count: c["moe_num_shared_experts"]!,
      leading_dense_block_count: c["moe_layer_start_index"]!,
      interleave_moe_layer_step: c["moe_layer_interval"]!,
    }),
    names: LAYER_NAMES,
  },
  {
    checkpoint: "qwen3moe-16e",
    architecture: "qwen3moe",
    keys: (c) => ({
      feed_forward_length: c["intermediate_size"]!,
      expert_feed_forward_length: c["moe_intermediate_size"]!,
      expert_count: c["num_experts"]!,
      "attention.key_length": c["head_dim"]!,
    }),
    names: LAYER_NAMES,
  },
];

/** Keys of models with DeepSeek-V3's experts and sigmoid routers. */
function sharedKeys(c: Config): { readonly [key: string]: number } {
  return {
    feed_forward_length: c["intermediate_size"]!,
    expert_feed_forward_length: c["moe_intermediate_size"]!,
    expert_count: c["n_routed_experts"]!,
    expert_shared_count: c["n_shared_experts"]!,
    leading_dense_block_count: c["first_k_dense_replace"]!,
    expert_gating_func: 2,
    "attention.key_length": c["head_dim"]!,
  };
}

/** Reorders rows with split halves to adjacent rotated pairs. */
function interleave(data: Float32Array, rows: number, heads: number) {
  const [width, columns] = [rows / heads, data.length / rows];
  const reordered = new Float32Array(data.length);
  for (let row = 0; row < rows; row++) {
    const [head, at] = [Math.floor(row / width), row % width];
    const from = head * width + (at >> 1) + (at & 1) * width / 2;
    reordered.set(
      data.subarray(from * columns, (from + 1) * columns),
      row * columns,
    );
  }
  return reordered;
}

async function convert(
  { checkpoint, architecture, keys, names, interleaved, scales }: Converted,
  [first, second]: readonly [string, string],
): Promise<void> {
  const folder = checkpointFolder(checkpoint);
  const config = JSON.parse(
    readFileSync(join(folder, "config.json"), "utf8"),
  ) as Config;
  const tensors: { [name: string]: GgufTensor } = {};
  const outer: { readonly [name: string]: string } = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
  };
  const read: [string, HostTensor][] = [];
  for (const file of await listWeightFiles(folder, files)) {
    read.push(...Object.entries(await readTensors(file, files)));
  }
  for (const [name, { shape, data }] of read) {
    const floats = Float32Array.from(data);
    const [, layer, of = "", ending] =
      /^model\.layers\.(\d+)\.(.*)\.(weight|bias)$/.exec(name) ?? [];
    const expert = /\.experts\.(\d+)\./.exec(of)?.[1];
    const [bias] = /\.(\d+)\..*e_score_correction_bias$/.exec(name)?.slice(1) ??
      [];
    if (bias !== undefined) {
      tensors[`blk.${bias}.exp_probs_b.bias`] = {
        shape: shape.slice(-1),
        data: floats,
      };
      continue;
    }
    const theirs = outer[name] ??
      `blk.${layer}.${
        names[of.replace(/\.experts\.\d+\./, ".experts.*.")]
      }.${ending}`;
    const heads = /attn_([qk])\.weight$/.exec(theirs)?.[1];
    const reordered = interleaved && heads
      ? interleave(
        floats,
        shape[0]!,
        config[heads === "q" ? "num_attention_heads" : "num_key_value_heads"]!,
      )
      : floats;
    if (expert === undefined) {
      const row = theirs.includes("inp_shexp");
      tensors[theirs] = {
        shape: row ? shape.slice(1) : shape,
        data: reordered,
      };
      continue;
    }
    const experts = [
      "num_local_experts",
      "num_experts",
      "n_routed_experts",
      "moe_num_experts",
    ].map((field) => config[field]).find((count) => count !== undefined)!;
    const stack = tensors[theirs] ??= {
      shape: [experts, ...shape],
      data: new Float32Array(experts * reordered.length),
    };
    stack.data.set(reordered, Number(expert) * reordered.length);
  }
  const common = {
    block_count: config["num_hidden_layers"]!,
    context_length: config["max_position_embeddings"]!,
    embedding_length: config["hidden_size"]!,
    expert_used_count: config["num_experts_per_tok"] ?? 0,
    "attention.head_count": config["num_attention_heads"]!,
    "attention.head_count_kv": config["num_key_value_heads"]!,
    ...keys(config),
  };
  const theta =
    (config["rope_parameters"] as unknown as Config)?.["rope_theta"] ??
      config["rope_theta"]!;
  const all: { [key: string]: GgufValue } = {
    "general.architecture": { text: architecture },
    ...Object.fromEntries(
      Object.entries(common).map((
        [key, u32],
      ) => [`${architecture}.${key}`, { u32 }]),
    ),
    [`${architecture}.attention.layer_norm_rms_epsilon`]: {
      f32: config["rms_norm_eps"]!,
    },
    [`${architecture}.rope.freq_base`]: { f32: theta },
    ...scales
      ? {
        [`${architecture}.expert_weights_scale`]: {
          f32: config["routed_scaling_factor"]!,
        },
        [`${architecture}.expert_weights_norm`]: { bool: true },
      }
      : {},
    [`${architecture}.vocab_size`]: { u32: config["vocab_size"]! },
  };
  const half = Object.entries(tensors);
  const parts = [half.slice(0, 9), half.slice(9)].map((part) =>
    Object.fromEntries(part)
  );
  writeFileSync(first, Buffer.concat([...writeGguf(all, parts[0]!)]));
  writeFileSync(second, Buffer.concat([...writeGguf({}, parts[1]!)]));
}

for (const [i, converted] of CONVERTED.entries()) {
  const { checkpoint } = converted;
  if (!isInTurn(i, 3)) {
    t.comment(`${checkpoint} is not converted in this run: ${repeatWith()}`);
    continue;
  }
  t.test(
    `${checkpoint} as a GGUF file in two parts has the bits of its folder`,
    { skip },
    async (t) => {
      const folder = temporaryFolder(t);
      const part = (n: number) => join(folder, `m-0000${n}-of-00002.gguf`);
      await convert(converted, [part(1), part(2)]);
      t.equal(
        await outputsOf(part(1), "ep=2", { adapter: "cpu" }),
        await outputsOf(checkpointFolder(checkpoint), "ep=1", {
          adapter: "cpu",
        }),
      );
    },
  );
}

t.test(
  "a GGUF file with a tokenizer generates the text of the folder",
  { skip },
  async (t) => {
    const [folder, demo] = [temporaryFolder(t), checkpointFolder("demo-lm")];
    const file = join(folder, "demo.gguf");
    const { model } = JSON.parse(
      readFileSync(join(demo, "tokenizer.json"), "utf8"),
    ) as { model: { vocab: { [token: string]: number }; merges: string[] } };
    const tokens = Object.entries(model.vocab).sort(([, a], [, b]) => a - b)
      .map(([token]) => token);
    await writeOlmoeGguf(demo, {
      file,
      matrices: "bf16",
      vocabulary: {
        "tokenizer.ggml.model": { text: "gpt2" },
        "tokenizer.ggml.pre": { text: "gpt-2" },
        "tokenizer.ggml.tokens": { texts: tokens },
        "tokenizer.ggml.merges": { texts: model.merges },
        "tokenizer.ggml.token_type": {
          i32s: tokens.map((token) => token === "<|endoftext|>" ? 3 : 1),
        },
        "tokenizer.ggml.eos_token_id": { u32: 0 },
      },
    });
    const argv = ["-p", "It was a dark night, and 12 o'clock", "-n", "12"];
    const adapter = ["--adapter", "cpu", "--mesh", "ep=2"];
    const found = await switchyard(["generate", file, ...argv, ...adapter]);
    const wanted = await switchyard(["generate", demo, ...argv, ...adapter]);
    t.equal(found.code, 0, found.err);
    t.equal(found.out, wanted.out);
    const planned = await switchyard([
      "plan",
      file,
      "--mesh",
      "ep=2",
      "--json",
    ]);
    t.equal(planned.code, 0, planned.err);
    t.match(JSON.parse(planned.out), { model: { parameters: Number } });
  },
);

t.test("endTokens() come from keys and known texts", (t) => {
  const control = (...texts: string[]) => ({
    "tokenizer.ggml.tokens": ["a", "<|im_end|>", ...texts],
    "tokenizer.ggml.token_type": [1, 1, ...texts.map(() => 3)],
  });
  const id = (key: string, id: number) => ({
    [`tokenizer.ggml.${key}_token_id`]: id,
  });
  t.equal(endTokens({}), undefined);
  t.equal(endTokens({ ...control("<s>", "</s>"), ...id("eos", 3) }), 3);
  t.strictSame(
    endTokens({ ...control("<|user|>"), ...id("eot", 2), ...id("eos", 0) }),
    [0, 2],
    "GLM-4.5: the user's turn",
  );
  t.strictSame(
    endTokens({ ...control("<eos>", "<turn|>"), ...id("eos", 2) }),
    [2, 3],
    "Gemma 4 has no key for the end of a turn",
  );
  t.equal(endTokens(control("<|end|>")), 2);
  t.strictSame(
    endTokens(control("<|return|>", "<|end|>", "<|call|>")),
    [2, 4],
    "gpt-oss continues after a message",
  );
  t.end();
});

t.test("damaged files are rejected with one message", async (t) => {
  const folder = temporaryFolder(t);
  const complete = Buffer.concat([
    ...writeGguf({ ...smallKeys(), ...vocabularyKeys(SMALL_VOCABULARY) }, {
      "token_embd.weight": { shape: [4, 8], data: new Float32Array(32) },
    }),
  ]);
  const file = join(folder, "bad.gguf");
  const refused = async (bytes: Uint8Array, pattern: RegExp) => {
    writeFileSync(file, bytes);
    const { code, err } = await switchyard(["plan", file]);
    t.equal(code, 1, err);
    t.match(err, pattern);
    t.equal(err.trim().split("\n").length, 1, err);
  };
  await refused(Buffer.from("not a model"), /^Cannot open .*header is damaged/);
  await refused(
    Buffer.from("version https://git-lfs.github.com/spec/v1\noid sha256:00\n"),
    /^Cannot open .*: it is a Git LFS pointer, .*\. Get the file again$/m,
  );
  const part = { "split.no": { u32: 1 }, "split.count": { u32: 3 } };
  await refused(
    Buffer.concat([...writeGguf(part, {})]),
    /^Cannot open .*: it is part 2 of 3 of a model\. Give the first part$/m,
  );
  t.match(
    (await switchyard(["plan", folder])).err,
    `it has no config.json. Give a GGUF file, such as '${file}'`,
  );
  await refused(
    complete.subarray(0, complete.length - 64),
    /does not fit in the file/,
  );
  for (let cut = 8; cut < 400; cut += 37) {
    await refused(
      complete.subarray(0, cut),
      /^Cannot open .*header is damaged/,
    );
  }
  const emptyAxis = Buffer.from(complete);
  // The innermost axis follows the name and the number of axes; the type follows two axes.
  const name = "token_embd.weight";
  const axes = complete.indexOf(name) + name.length + 4;
  for (const [type, shown] of [[10, "Q2_K"], [200, "200"]] as const) {
    const other = Buffer.from(complete);
    other.writeUInt32LE(type, axes + 16);
    await refused(
      other,
      new RegExp(`has type ${shown}, which is not read. Use a file with types`),
    );
  }
  emptyAxis.fill(0, axes, axes + 8);
  await refused(emptyAxis, /does not fit in the file/);
  const keys = { ...smallKeys(), ...vocabularyKeys(SMALL_VOCABULARY) };
  const texts = ["<unk>", "a".repeat(300)];
  const longToken = {
    ...keys,
    "tokenizer.ggml.tokens": { texts },
    "tokenizer.ggml.token_type": { i32s: [2, 1] },
  };
  await refused(
    Buffer.concat([...writeGguf(longToken, {})]),
    /a token has 300 characters, and the limit is 256/,
  );
});

t.test("rows that are not pairs within heads are rejected", async (t) => {
  const file = join(temporaryFolder(t), "odd.gguf");
  for (const u32 of [0, 3, 8]) {
    const keys = {
      "general.architecture": { text: "llama" },
      "llama.expert_count": { u32: 2 },
      "llama.attention.head_count": { u32 },
    };
    const tensors = {
      "blk.0.attn_q.weight": { shape: [8, 4], data: new Float32Array(32) },
    };
    writeFileSync(file, Buffer.concat([...writeGguf(keys, tensors)]));
    await t.rejects(readTensors(file, files), {
      message: new RegExp(`has 8 rows, which are not pairs of ${u32} heads`),
    });
  }
});

t.test("files of Mistral Large 3 have the name of DeepSeek-V2", (t) => {
  const keys = {
    "general.architecture": "deepseek2",
    "deepseek2.expert_gating_func": 1,
    "deepseek2.rope.scaling.type": "yarn",
    "deepseek2.rope.scaling.factor": 16,
    "deepseek2.rope.scaling.original_context_length": 8192,
    "deepseek2.rope.scaling.yarn_log_multiplier": 0.1,
  };
  const scaling = { rope_type: "yarn", factor: 16, mscale_all_dim: 1 };
  const growth = { "deepseek2.attention.temperature_scale": Math.fround(0.1) };
  t.match(configOf("v2.gguf", { keys, tensors: [] }), {
    architectures: ["DeepseekV2ForCausalLM"],
    rope_scaling: scaling,
  });
  t.match(
    configOf("large.gguf", { keys: { ...keys, ...growth }, tensors: [] }),
    {
      architectures: ["Mistral4ForCausalLM"],
      rope_scaling: { ...scaling, llama_4_scaling_beta: 0.1 },
    },
  );
  const sigmoid = { "deepseek2.expert_gating_func": 2 };
  t.throws(
    () =>
      configOf("v3.gguf", {
        keys: { ...keys, ...growth, ...sigmoid },
        tensors: [],
      }),
    /its key 'deepseek2.expert_gating_func' is 2, and only 1 is read/,
  );
  t.end();
});

t.test("files without indexer types use those of GLM-5.2", (t) => {
  const keys = {
    "general.architecture": "glm-dsa",
    "glm-dsa.context_length": 1048576,
    "glm-dsa.block_count": 4e9,
  };
  const tensors = Array.from({ length: 8 }, () => ({
    name: "a",
    shape: [],
    type: GGUF_TYPES[0]!,
    offset: 0,
    bytes: 0,
  }));
  t.match(configOf("m.gguf", { keys, tensors }), {
    indexer_types: [
      ...["full", "full", "full", "shared", "shared", "shared", "full"],
      "shared",
    ],
  });
  t.end();
});

t.test("layers for drafts are ignored in files of MiMo-V2", async (t) => {
  const keys: { [key: string]: GgufValue } = {
    block_count: { u32: 4 },
    nextn_predict_layers: { u32: 2 },
    "attention.key_length": { u32: 12 },
    "rope.dimension_count": { u32: 4 },
    "rope.freq_base": { f32: 5e6 },
    "rope.freq_base_swa": { f32: 1e4 },
    "attention.head_count_kv": { i32s: [2, 4, 4, 4] },
    "attention.sliding_window_pattern": { i32s: [0, 1, 1, 1] },
  };
  const tensor = { shape: [4], data: new Float32Array(4) };
  const file = join(temporaryFolder(t), "mimo.gguf");
  writeFileSync(
    file,
    Buffer.concat([
      ...writeGguf({
        "general.architecture": { text: "mimo2" },
        ...Object.fromEntries(
          Object.entries(keys).map(([key, value]) => [`mimo2.${key}`, value]),
        ),
      }, {
        "blk.0.attn_norm.weight": tensor,
        "blk.0.ffn_gate.weight": { shape: [2, 4], data: new Float32Array(8) },
        "blk.1.attn_norm.weight": tensor,
        "blk.2.attn_norm.weight": tensor,
        "blk.3.nextn.enorm.weight": tensor,
      }),
    ]),
  );
  t.strictSame(Object.keys(await readTensors(file, files)).sort(), [
    "model.layers.0.input_layernorm.weight",
    "model.layers.0.mlp.gate_proj.weight",
    "model.layers.1.input_layernorm.weight",
  ]);
  const opened = await files.open(file);
  const header = await readGguf(file, opened);
  await opened.close();
  t.match(configOf(file, header), {
    num_hidden_layers: 2,
    layer_types: ["full_attention", "sliding_attention"],
    mlp_layer_types: ["dense", "sparse"],
    num_key_value_heads: 2,
    swa_num_key_value_heads: 4,
    attention_value_scale: null,
    rope_parameters: {
      full_attention: { rope_theta: 5e6, partial_rotary_factor: 4 / 12 },
      sliding_attention: { rope_theta: 1e4 },
    },
  });
});

t.test("value heads that do not match their tensor are rejected", async (t) => {
  const file = join(temporaryFolder(t), "heads.gguf");
  for (
    const [keyHeads, valueHeads, inner] of [
      [2, 4, 64],
      [3, 4, 8],
      [0, 4, 8],
      [2, 4, 6],
      [2, 0, 8],
    ] as const
  ) {
    const keys = {
      "general.architecture": { text: "qwen35moe" },
      "qwen35moe.ssm.group_count": { u32: keyHeads },
      "qwen35moe.ssm.time_step_rank": { u32: valueHeads },
      "qwen35moe.ssm.inner_size": { u32: inner },
      "qwen35moe.ssm.state_size": { u32: 2 },
    };
    const tensors = {
      "blk.0.attn_gate.weight": { shape: [8, 4], data: new Float32Array(32) },
    };
    writeFileSync(file, Buffer.concat([...writeGguf(keys, tensors)]));
    await t.rejects(readTensors(file, files), {
      message:
        /the shape of tensor 'blk.0.attn_gate.weight', \[8, 4\], does not fit the keys 'qwen35moe.ssm.\*'/,
    });
  }
});

t.test("texts are split as by the original tokenizers", (t) => {
  const split = (name: string, text: string) =>
    SPLITS[name]!.reduce((parts, pattern) => {
      // Case-insensitive groups are not supported by all JavaScript versions.
      const plain = pattern.replaceAll(
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
      );
      return parts.flatMap((part) =>
        part.split(new RegExp(`(${plain})`, "u")).filter(Boolean)
      );
    }, [text]);
  const text = "I'M HelloWorld 12345 e\u0301t\u00e9 \u4f60\u597dab?\n/x";
  const wanted: { readonly [name: string]: readonly string[] } = {
    "gpt-2": ["I", "'", "M", " HelloWorld", " 12345", " e", "\u0301"],
    "llama-bpe": ["I", "'M", " HelloWorld", " ", "123", "45", " e"],
    qwen2: ["I", "'M", " HelloWorld", " ", "1", "2", "3", "4", "5", " e"],
    qwen35: ["I", "'M", " HelloWorld", " ", "1", "2", "3", "4", "5"],
    "gpt-4o": ["I'M", " Hello", "World", " ", "123", "45"],
    cohere2moe: ["I'M", " Hello", "World", " ", "12", "345"],
    "kimi-k2": ["I'M", " Hello", "World", " ", "123", "45"],
    "deepseek-v3": ["I", "'M", " HelloWorld", " ", "123", "45"],
    bailingmoe2: ["I", "'M", " HelloWorld", " ", "1", "2", "3", "4", "5"],
    "exaone-moe": ["I", "'M", " HelloWorld", " ", "1", "2", "3", "4", "5"],
    tekken: ["I", "'M", " Hello", "World", " ", "1", "2", "3", "4", "5"],
    "deepseek-llm": ["I", "'", "M", " HelloWorld", " ", "12345", " e"],
    afmoe: ["I", "'M", " HelloWorld", " ", "12", "345"],
  };
  const ends: { readonly [name: string]: readonly string[] } = {
    "gpt-2": ["t\u00e9", " \u4f60\u597dab", "?", "\n", "/", "x"],
    "llama-bpe": ["\u0301t\u00e9", " \u4f60\u597dab", "?\n", "/x"],
    qwen2: ["\u0301t\u00e9", " \u4f60\u597dab", "?\n", "/x"],
    qwen35: [" e\u0301t\u00e9", " \u4f60\u597dab", "?\n", "/x"],
    "gpt-4o": [" e\u0301t\u00e9", " \u4f60\u597dab", "?\n/", "x"],
    cohere2moe: [" e\u0301t\u00e9", " \u4f60\u597dab", "?\n/", "x"],
    "kimi-k2": [" e\u0301t\u00e9", " ", "\u4f60\u597d", "ab", "?\n", "/x"],
    "deepseek-v3": [" e\u0301t\u00e9", " ", "\u4f60\u597d", "ab", "?\n", "/x"],
    bailingmoe2: ["\u0301t\u00e9", " \u4f60\u597dab", "?\n", "/x"],
    "exaone-moe": [" e\u0301t\u00e9 \u4f60\u597dab", "?\n", "/x"],
    tekken: [" e\u0301t\u00e9", " \u4f60\u597dab", "?\n/", "x"],
    "deepseek-llm": [" ", "\u4f60\u597d", "ab", "?", "\n", "/", "x"],
    afmoe: [" e\u0301t\u00e9", " ", "\u4f60\u597d", "ab", "?\n", "/x"],
  };
  for (const [name, start] of Object.entries(wanted)) {
    const found = split(name, text);
    t.equal(found.join(""), text);
    t.strictSame(found.slice(0, start.length), start, name);
    const end = ends[name]!;
    t.strictSame(found.slice(-end.length), end, name);
  }
  t.end();
});

t.test("Llama 3 begins texts with a token, and uses tokens without merges", (t) => {
  const found = (pre: string) =>
    tokenizerOf("l.gguf", {
      keys: {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": ["a", "b", "ab", "<bos>"],
        "tokenizer.ggml.token_type": [1, 1, 1, 3],
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.bos_token_id": 3,
      },
      tensors: [],
    })!.tokenizer;
  const written = (pre: string) =>
    tokenizerKeys({
      tokenizer: found(pre) as { [field: string]: unknown },
      config: {},
      template: undefined,
      ids: {},
      vocabulary: 4,
    });
  for (const [pre, like] of [["llama-bpe", true], ["dbrx", false]] as const) {
    const { model, post_processor } = found(pre) as {
      [name: string]: { [name: string]: unknown } | null;
    };
    t.equal(model!["ignore_merges"], like, pre);
    t.equal(post_processor !== null, like, pre);
    t.match(written(pre), {
      "tokenizer.ggml.pre": { text: pre },
      "tokenizer.ggml.add_bos_token": { bool: like },
    });
  }
  t.end();
});

t.test("the tokenizer of Gemma 4 uses the merges of its file", (t) => {
  const tokens = ["<pad>", "<bos>", "a", "b", "\u2581", "ab", "\u2581ab"];
  const found = tokenizerOf("g.gguf", {
    keys: {
      "tokenizer.ggml.model": "gemma4",
      "tokenizer.ggml.tokens": tokens,
      "tokenizer.ggml.token_type": [3, 3, 1, 1, 1, 1, 1],
      "tokenizer.ggml.merges": ["a b", "\u2581 ab"],
      "tokenizer.ggml.bos_token_id": 1,
    },
    tensors: [],
  })!;
  const { model, normalizer, decoder, post_processor } = found.tokenizer as {
    [name: string]: { [name: string]: unknown };
  };
  t.match(model, { type: "BPE", merges: ["a b", "\u2581 ab"] });
  t.equal(model!["byte_fallback"], true);
  t.notMatch(JSON.stringify(normalizer), /Prepend/);
  t.notMatch(JSON.stringify(decoder), /Strip/);
  t.match(JSON.stringify(post_processor), /<bos>/);
  t.end();
});
