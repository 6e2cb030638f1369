/** Memory of quantized weights: devices allocate or map what the plan states, at most 10 % more than the file has. */
// needs: cpu
// rotates with: runtime/weights/, runtime/memory.ts, runtime/rank_memories.ts, spec/weights/, engine/gguf/

import { writeFileSync } from "node:fs";
import { join } from "node:path";
import t, { type Test } from "tap";
import {
  type GgufData,
  type GgufTensor,
  vocabularyKeys,
  writeGguf,
} from "../bench/peers/gguf.ts";
import {
  BLOCK_TYPES,
  blocksOf,
  bytesFrom,
} from "../bench/peers/gguf_blocks.ts";
import { smallKeys } from "../bench/peers/small_gguf.ts";
import type { GgufValues } from "../engine/gguf/write.ts";
import { compile } from "../compiler/mod.ts";
import { selectDevices } from "../engine/devices.ts";
import { type FileSystem, loadTarget, planTarget } from "../engine/mod.ts";
import { withTensors } from "../engine/checkpoint/tensors.ts";
import { tuningOf } from "../engine/tune/tuning.ts";
import { openCpuPool } from "../runtime/cpu/mod.ts";
import { HostDevice, type HostPool } from "../runtime/host/device.ts";
import { NativePool, whyNotNative } from "../runtime/native/mod.ts";
import { sum } from "../spec/sum.ts";
import { onRank, type Plan } from "../spec/plan/plan.ts";
import type { Activations } from "../spec/weights/activations.ts";
import { files, meshOf } from "./helpers/checkpoints.ts";
import { temporaryFolder } from "./helpers/cli.ts";
import { skipUnasked } from "./helpers/needs.ts";
import { INNER_SEED, isInTurn, repeatWith } from "./helpers/seed.ts";
import { openSession, packedPrompts, watchDevice } from "./helpers/sessions.ts";

/** Maximum bytes of weights on a rank, relative to its share of the file. */
const MAX_RATIO = 1.1;
/** Smallest buffer that devices map. */
const MAPPED_FROM = 1 << 20;
const BOUNDS = { maxTokens: 8, maxSequences: 2, maxContext: 16 };
const [FFN, VOCABULARY] = [2048, 320];
const MESHES = ["ep=1", "ep=2", "tp=2,ep=2"] as const;

/** Where weights are: in mapped files, in native memory, or in memory of WebAssembly. */
const PLACES = ["mapped", "native", "cpu"] as const;

interface File {
  readonly type: typeof BLOCK_TYPES[number];
  readonly embed: number;
  readonly experts: number;
  /** Ranks of `tp=2` do not have whole blocks of 32 elements. */
  readonly splits?: true;
  /** Attention is latent: `kv_b_proj` is contracted over two axes, which WebAssembly decodes on load. */
  readonly latent?: true;
}

/** The second width of each type has blocks that `tp=2` divides. */
const FILES: readonly File[] = [
  { type: typeOf("Q8_0"), embed: 512, experts: 4 },
  { type: typeOf("Q8_0"), embed: 1056, experts: 4, splits: true },
  { type: typeOf("Q4_K"), embed: 512, experts: 8 },
  { type: typeOf("Q4_K"), embed: 768, experts: 8 },
  { type: typeOf("MXFP4"), embed: 512, experts: 8 },
  { type: typeOf("MXFP4"), embed: 1056, experts: 8, splits: true },
  { type: typeOf("Q4_K"), embed: 512, experts: 8, latent: true },
];

/** Sizes of latent attention. */
const LATENT = { heads: 8, nope: 64, value: 64, rope: 32, latent: 512 };

function typeOf(name: string): File["type"] {
  return BLOCK_TYPES.find((type) => type.name === name)!;
}

/** Matrices in f32. */
const PLAIN = /norm|mlp\.gate\./;

/** Keys of the files: of OLMoE, or of DeepSeek. */
function keysOf({ embed, experts, latent }: File): GgufValues {
  const common = vocabularyKeys(VOCABULARY);
  if (!latent) {
    return {
      ...smallKeys(embed),
      ...common,
      "olmoe.block_count": { u32: 1 },
      "olmoe.feed_forward_length": { u32: FFN },
      "olmoe.expert_count": { u32: experts },
    };
  }
  const { heads, nope, value, rope, latent: width } = LATENT;
  const counts = {
    block_count: 1,
    context_length: 64,
    embedding_length: embed,
    vocab_size: VOCABULARY,
    feed_forward_length: FFN,
    expert_feed_forward_length: FFN,
    leading_dense_block_count: 0,
    expert_count: experts,
    expert_used_count: 2,
    expert_shared_count: 1,
    expert_gating_func: 1,
    "attention.head_count": heads,
    "attention.head_count_kv": heads,
    "attention.q_lora_rank": embed,
    "attention.kv_lora_rank": width,
    "attention.key_length": nope + rope,
    "attention.value_length": value,
    "rope.dimension_count": rope,
  };
  return {
    "general.architecture": { text: "deepseek2" },
    ...common,
    ...Object.fromEntries(
      Object.entries(counts).map(([key, u32]) => [`deepseek2.${key}`, { u32 }]),
    ),
    "deepseek2.attention.layer_norm_rms_epsilon": { f32: 1e-6 },
    "deepseek2.rope.freq_base": { f32: 10000 },
    "deepseek2.expert_weights_scale": { f32: 1 },
    "deepseek2.expert_weights_norm": { bool: false },
  };
}

/** Writes a model of one layer, whose matrices repeat a few blocks. */
function write(path: string, file: File): void {
  const { type, embed, experts } = file;
  const some = blocksOf(type, 1024, 1);
  const tensors: { [name: string]: GgufTensor<GgufData> } = {};
  const put = (name: string, ...shape: number[]) => {
    const elements = shape.reduce((n, size) => n * size, 1);
    const bytes = elements / type.elements * type.bytes;
    const blocks = new Uint8Array(Buffer.alloc(bytes, some));
    tensors[`${name}.weight`] = { shape, data: { type: type.number, blocks } };
  };
  const float = (name: string, ...shape: number[]) => {
    const elements = shape.reduce((n, size) => n * size, 1);
    const data = Float32Array.from(bytesFrom(1, elements), (x) => x / 256);
    tensors[`${name}.weight`] = { shape, data };
  };
  put("token_embd", VOCABULARY, embed);
  if (file.latent) {
    const { heads, nope, value, rope, latent } = LATENT;
    put("blk.0.attn_q_a", embed, embed);
    put("blk.0.attn_q_b", heads * (nope + rope), embed);
    put("blk.0.attn_kv_a_mqa", latent + rope, embed);
    put("blk.0.attn_kv_b", heads * (nope + value), latent);
    put("blk.0.attn_output", embed, heads * value);
    for (const part of ["gate", "up"]) {
      put(`blk.0.ffn_${part}_shexp`, FFN, embed);
    }
    put("blk.0.ffn_down_shexp", embed, FFN);
    float("blk.0.attn_q_a_norm", embed);
    float("blk.0.attn_kv_a_norm", latent);
  } else {
    for (const name of ["q", "k", "v", "output"]) {
      put(`blk.0.attn_${name}`, embed, embed);
    }
    for (const name of ["q", "k"]) float(`blk.0.attn_${name}_norm`, embed);
  }
  put("blk.0.ffn_gate_exps", experts, FFN, embed);
  put("blk.0.ffn_up_exps", experts, FFN, embed);
  put("blk.0.ffn_down_exps", experts, embed, FFN);
  float("blk.0.ffn_gate_inp", experts, embed);
  for (const name of ["attn", "ffn"]) float(`blk.0.${name}_norm`, embed);
  float("output_norm", embed);
  put("output", VOCABULARY, embed);
  writeFileSync(path, Buffer.concat([...writeGguf(keysOf(file), tensors)]));
}

/** Files that cannot be mapped. */
const UNMAPPED: FileSystem = {
  ...files,
  open: async (path) => {
    const { descriptor: _, ...file } = await files.open(path);
    return file;
  },
};

/** Bytes that a pool allocated and mapped since the last call. */
type Measure = () => { readonly allocated: number; readonly mapped: number };

/** Counts the requests to the memory of a pool, without the memory of kernels. */
function watchHeap({ heap }: HostPool): Measure {
  let [allocated, mapped] = [0, 0];
  const { allocate, map } = heap;
  heap.allocate = (bytes, label) => {
    if (label !== "scratch") allocated += bytes;
    return allocate.call(heap, bytes, label);
  };
  if (map) {
    heap.map = (runs) => {
      const span = map.call(heap, runs);
      mapped += span?.size ?? 0;
      return span;
    };
  }
  return () => {
    const found = { allocated, mapped };
    [allocated, mapped] = [0, 0];
    return found;
  };
}

/** Bytes of weights on each rank, by parameter. */
function weightBytes(plan: Plan): Map<string, number>[] {
  return Array.from({ length: plan.ranks }, (_, rank) => {
    const bytes = new Map<string, number>();
    for (const { buffer } of plan.weights) {
      const [param] = buffer.split(":") as [string];
      const part = onRank(plan.buffers[buffer]!.bytes, rank);
      bytes.set(param, (bytes.get(param) ?? 0) + part);
    }
    return bytes;
  });
}

interface Case {
  readonly file: File;
  readonly path: string;
  readonly place: typeof PLACES[number];
  readonly mesh: string;
  readonly activations: Activations;
}

/** Loads a file and compares memory. `runs`: whether a step runs, too. */
async function compare(
  t: Test,
  { file: { type, splits, latent }, path, place, mesh, activations }: Case,
  { pool, measure, runs }: {
    readonly pool: HostPool;
    readonly measure: Measure;
    readonly runs: boolean;
  },
): Promise<void> {
  measure();
  const adapter = place === "cpu" ? "cpu" : "native";
  const selected = await selectDevices({ adapter });
  const target = await loadTarget(path, files);
  if (target.kind !== "checkpoint") throw new Error("not a checkpoint");
  const { limits } = selected;
  const options = {
    mesh: meshOf(mesh),
    limits,
    tuning: tuningOf(selected, {}),
  };
  const plan = await planTarget(target, files, {
    ...options,
    activations,
    bounds: BOUNDS,
  });
  const model = target.checkpoint.published.build(BOUNDS);
  const plain = await compile(model, options);
  const device = watchDevice(
    new HostDevice(pool),
    runs ? {} : { prepare: () => Promise.resolve() },
  );
  const devices = Array.from({ length: plan.ranks }, () => device);
  const session = await withTensors(
    [path],
    place === "mapped" ? files : UNMAPPED,
    (tensors) => openSession(plan, { devices, tensors, statistics: true }),
  );
  const { allocated, mapped } = measure();
  const all = Array.from({ length: plan.ranks }, (_, rank) => rank);
  const planned = sum(all.map((rank) => onRank(plan.peakBytes, rank)));
  t.equal(allocated + mapped, planned, "allocated and mapped bytes");
  const mappable = plan.weights.flatMap(({ buffer, source }) =>
    source.endsWith(`:${type.block}`)
      ? all.map((rank) => onRank(plan.buffers[buffer]!.bytes, rank))
      : []
  ).filter((bytes) => bytes >= MAPPED_FROM);
  t.equal(mapped, place === "mapped" ? sum(mappable) : 0, "mapped bytes");
  t.equal(mapped > 0, place === "mapped");
  for (const { rank, peakBytes } of session.statistics().ranks) {
    t.strictSame(
      peakBytes,
      { predicted: onRank(plan.peakBytes, rank), actual: peakBytes.predicted },
      `rank ${rank}`,
    );
  }
  const packed = weightBytes(plan);
  for (const [rank, elements] of weightBytes(plain).entries()) {
    const bytesOf = ([param, bytes]: readonly [string, number]) =>
      PLAIN.test(param) ? bytes : bytes / 4 / type.elements * type.bytes;
    const share = sum([...elements].map(bytesOf));
    const ratio = sum([...packed[rank]!.values()]) / share;
    // Without whole blocks of 32 elements, weights are decoded.
    const decodes = splits && mesh.startsWith("tp") ||
      latent && place === "cpu";
    if (decodes) t.ok(ratio > MAX_RATIO);
    else t.ok(ratio >= 0.999 && ratio <= MAX_RATIO, `rank ${rank}: ${ratio}`);
  }
  if (runs) {
    await session.run("main", packedPrompts([3, 2]));
    t.strictSame(measure(), { allocated: 0, mapped: 0 }, "during a run");
  }
  session.close();
}

const skip = skipUnasked("cpu");
const noNative = await whyNotNative() ?? false;

for (const place of PLACES) {
  t.test(`memory of GGUF blocks: ${place}`, {
    skip: skip || place !== "cpu" && noNative,
  }, async (t) => {
    const folder = temporaryFolder(t);
    const pool: HostPool =
      await (place === "cpu" ? openCpuPool(1) : NativePool.open(1));
    const measure = watchHeap(pool);
    const cases = FILES.flatMap((file, i) =>
      MESHES.flatMap((mesh, j) =>
        (["q8", "f32"] as const).flatMap((activations, k): Case[] => {
          const splits = file.splits && mesh.startsWith("tp");
          if (splits && activations === "q8") return [];
          if (!isInTurn(i + j + k, 3)) return [];
          const path = join(folder, `${i}.gguf`);
          return [{ file, path, place, mesh, activations }];
        })
      )
    );
    const run = Math.abs(INNER_SEED) % cases.length;
    for (const [i, one] of cases.entries()) {
      const { file, mesh, activations, path } = one;
      write(path, file);
      await t.test(
        `${file.type.name}, ${
          file.latent ? "latent, " : ""
        }${file.embed} columns, ${mesh}, ${activations} (${repeatWith()})`,
        (t) => compare(t, one, { pool, measure, runs: i === run }),
      );
    }
    await pool.close();
  });
}
