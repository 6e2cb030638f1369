// Peak memory of ranks that load a checkpoint of more than 1 GiB: bounded above their shard of the weights.
// needs: cpu, gpu, mpi
// rotates with: runtime/mpi/, runtime/weights/load.ts, runtime/shard.ts
import { ftruncateSync, openSync, statfsSync, writeSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { freemem } from "node:os";
import path from "node:path";
import process from "node:process";
import t from "tap";
import { launcherArguments } from "../../cli/launch/mpi_launcher.ts";
import { skipWithoutGpu } from "../helpers/needs.ts";
import { temporaryFolder } from "../helpers/cli.ts";
import { startedProgram } from "../helpers/compiled.ts";
import { LAUNCHERS, start } from "../helpers/mpi.ts";
import { ableInTurn } from "../helpers/seed.ts";

const RANKS = 2;
const MIB = 2 ** 20;

/** Maximum peak memory above that of a rank without weights plus its shard. */
const ALLOWED = 320 * MIB;

/** Two matrices longer than a chunk of the loader, and 48 experts. */
const CONFIG = {
  architectures: ["MixtralForCausalLM"],
  model_type: "mixtral",
  hidden_size: 1024,
  intermediate_size: 2816,
  num_hidden_layers: 6,
  num_attention_heads: 8,
  num_key_value_heads: 2,
  num_experts_per_tok: 2,
  num_local_experts: 8,
  vocab_size: 60_000,
  max_position_embeddings: 256,
  rms_norm_eps: 1e-5,
  rope_theta: 10000,
  hidden_act: "silu",
  tie_word_embeddings: false,
  sliding_window: null,
  torch_dtype: "bfloat16",
};

/** Writes a sparse checkpoint of zeros. Returns the bytes of its tensors. */
async function writeCheckpoint(folder: string): Promise<number> {
  const { hidden_size: h, intermediate_size: f, vocab_size } = CONFIG;
  const kv = h * CONFIG.num_key_value_heads / CONFIG.num_attention_heads;
  const tensors: [string, number[]][] = [
    ["lm_head.weight", [vocab_size, h]],
    ["model.embed_tokens.weight", [vocab_size, h]],
    ["model.norm.weight", [h]],
  ];
  for (let i = 0; i < CONFIG.num_hidden_layers; i++) {
    const layer = `model.layers.${i}`;
    tensors.push(
      [`${layer}.input_layernorm.weight`, [h]],
      [`${layer}.post_attention_layernorm.weight`, [h]],
      [`${layer}.self_attn.q_proj.weight`, [h, h]],
      [`${layer}.self_attn.k_proj.weight`, [kv, h]],
      [`${layer}.self_attn.v_proj.weight`, [kv, h]],
      [`${layer}.self_attn.o_proj.weight`, [h, h]],
      [`${layer}.block_sparse_moe.gate.weight`, [CONFIG.num_local_experts, h]],
    );
    for (let e = 0; e < CONFIG.num_local_experts; e++) {
      const expert = `${layer}.block_sparse_moe.experts.${e}`;
      tensors.push(
        [`${expert}.w1.weight`, [f, h]],
        [`${expert}.w2.weight`, [h, f]],
        [`${expert}.w3.weight`, [f, h]],
      );
    }
  }
  let end = 0;
  const header = Object.fromEntries(tensors.map(([name, shape]) => {
    const begin = end;
    end += 2 * shape.reduce((product, n) => product * n, 1);
    return [name, { dtype: "BF16", shape, data_offsets: [begin, end] }];
  }));
  const text = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  const file = openSync(path.join(folder, "model.safetensors"), "w");
  writeSync(file, Buffer.concat([length, text]));
  ftruncateSync(file, 8 + text.length + end);
  await writeFile(path.join(folder, "config.json"), JSON.stringify(CONFIG));
  return end;
}

interface Measured {
  readonly rank: number;
  readonly bytes: number;
  readonly weights: number;
}

const folder = temporaryFolder(t);
const file = await writeCheckpoint(folder);
const disk = statfsSync(folder);
const short = process.platform !== "linux"
  ? "there is no /proc"
  : freemem() < 5 * file
  ? `the checkpoint needs ${5 * file} bytes of free memory`
  : disk.bavail * disk.bsize < 2 * file
  ? "the disk is full"
  : false;
const ADAPTERS = [
  { adapter: "cpu", skip: false as const },
  { adapter: "0", skip: skipWithoutGpu },
];

// The MPI implementation does not affect loading.
const { family, command, skip } = LAUNCHERS.find(({ skip }) => !skip) ??
  LAUNCHERS[0]!;

for (const { adapter, skip: absent } of ableInTurn(ADAPTERS)) {
  t.test(`ranks load only their shard, on ${adapter}`, {
    skip: skip || short || absent,
  }, async (t) => {
    const measure = async (mode: "open" | "load"): Promise<Measured[]> => {
      const { code, out, err } = await start(command!, [
        ...launcherArguments(family, {
          ranks: RANKS,
          root: process.getuid?.() === 0,
        }),
        ...[process.execPath, ...startedProgram("test/helpers/memory_rank.ts")],
        ...[folder, mode, adapter],
      ]).ended;
      if (code !== 0) throw new Error(err);
      return out.trim().split("\n")
        .map((line) => JSON.parse(line) as Measured)
        .sort((a, b) => a.rank - b.rank);
    };
    t.ok(file >= 1024 * MIB, `a checkpoint of ${file} bytes`);
    const opened = await measure("open");
    const loaded = await measure("load");
    t.strictSame(loaded.map(({ rank }) => rank), [0, 1]);
    for (const { rank, bytes, weights } of loaded) {
      t.ok(weights > 512 * MIB, "a large shard");
      t.ok(
        weights < 0.7 * file,
        "only its experts, and replicated weights, as stored",
      );
      const over = bytes - opened[rank]!.bytes - weights;
      t.ok(
        over < ALLOWED,
        `rank ${rank}: ${(over / MIB).toFixed(0)} MiB above its shard`,
      );
    }
  });
}
