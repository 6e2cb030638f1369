/** Files of Kimi-Linear and Kimi-K3 in the shapes of llama.cpp's converter. */
// needs: cpu
// rotates with: engine/gguf/

import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t, { type Test } from "tap";
import { type GgufTensor, writeGguf } from "../bench/peers/gguf.ts";
import { configOf } from "../engine/gguf/config.ts";
import { readGguf } from "../engine/gguf/header.ts";
import type { GgufValue } from "../engine/gguf/write.ts";
import { readTensors } from "../engine/mod.ts";
import { checkpointFolder, files } from "./helpers/checkpoints.ts";
import { switchyard, temporaryFolder } from "./helpers/cli.ts";
import { type KimiText, withEqualHeads } from "./helpers/kimi_heads.ts";
import { skipUnasked } from "./helpers/needs.ts";

const skip = skipUnasked("cpu");

const SIGMOID = 2;

/** Names of the converter, of tensors that it does not change. */
const NAMES: { readonly [ours: string]: string } = {
  "input_layernorm.weight": "attn_norm.weight",
  "post_attention_layernorm.weight": "ffn_norm.weight",
  "self_attn.q_proj.weight": "attn_q.weight",
  "self_attn.k_proj.weight": "attn_k.weight",
  "self_attn.v_proj.weight": "attn_v.weight",
  "self_attn.o_proj.weight": "attn_output.weight",
  "self_attn.q_a_proj.weight": "attn_q_a.weight",
  "self_attn.q_a_layernorm.weight": "attn_q_a_norm.weight",
  "self_attn.q_b_proj.weight": "attn_q_b.weight",
  "self_attn.kv_a_proj_with_mqa.weight": "attn_kv_a_mqa.weight",
  "self_attn.kv_a_layernorm.weight": "attn_kv_a_norm.weight",
  "self_attn.f_a_proj.weight": "ssm_f_a.weight",
  "self_attn.f_b_proj.weight": "ssm_f_b.weight",
  "self_attn.g_a_proj.weight": "ssm_g_a.weight",
  "self_attn.g_b_proj.weight": "ssm_g_b.weight",
  "self_attn.b_proj.weight": "ssm_beta.weight",
  "self_attn.dt_bias": "ssm_dt.bias",
  "self_attn.o_norm.weight": "ssm_norm.weight",
  "mlp.gate_proj.weight": "ffn_gate.weight",
  "mlp.up_proj.weight": "ffn_up.weight",
  "mlp.down_proj.weight": "ffn_down.weight",
  "block_sparse_moe.gate.weight": "ffn_gate_inp.weight",
  "block_sparse_moe.gate.e_score_correction_bias": "exp_probs_b.bias",
  "block_sparse_moe.shared_experts.gate_proj.weight": "ffn_gate_shexp.weight",
  "block_sparse_moe.shared_experts.up_proj.weight": "ffn_up_shexp.weight",
  "block_sparse_moe.shared_experts.down_proj.weight": "ffn_down_shexp.weight",
  "block_sparse_moe.routed_expert_down_proj.weight": "ffn_routed_down.weight",
  "block_sparse_moe.routed_expert_up_proj.weight": "ffn_routed_up.weight",
  "block_sparse_moe.routed_expert_norm.weight": "ffn_routed_norm.weight",
};

const EXPERTS: { readonly [ours: string]: string } = {
  w1: "ffn_gate_exps",
  w2: "ffn_down_exps",
  w3: "ffn_up_exps",
};

/** Names of products of a norm and a projection. */
const PRODUCTS: { readonly [ours: string]: string } = {
  self_attention_res: "attn_res_score",
  mlp_res: "ffn_res_score",
};

/** Writes a folder as the converter would, in two parts. Returns the first. */
async function convert(
  from: string,
  { to, text, name }: {
    readonly to: string;
    readonly text: KimiText;
    readonly name: "kimi-linear" | "kimi-k3";
  },
): Promise<string> {
  const number = (field: string) => Number(text[field]);
  const heads = number("num_attention_heads");
  const [nope, rotated, values] = [
    number("qk_nope_head_dim"),
    number("qk_rope_head_dim"),
    number("v_head_dim"),
  ];
  const latent = number("kv_lora_rank");
  const { full_attn_layers: full } = text.linear_attn_config;
  const found = Object.fromEntries(
    Object.entries(await readTensors(join(from, "model.safetensors"), files))
      .map(([name, { shape, data }]) => [
        name.replace("language_model.", ""),
        { shape, data: Float32Array.from(data) },
      ]),
  );
  const tensors: { [name: string]: GgufTensor } = {
    "token_embd.weight": found["model.embed_tokens.weight"]!,
    "output_norm.weight": found["model.norm.weight"]!,
    "output.weight": found["lm_head.weight"]!,
  };
  const product = (start: string): GgufTensor => {
    const norm = found[`${start}_norm.weight`]!;
    const scores = found[`${start}_proj.weight`]!;
    return {
      shape: norm.shape,
      data: norm.data.map((x, i) => x * scores.data[i]!),
    };
  };
  if ("model.output_attn_res_norm.weight" in found) {
    tensors["output_res_score.weight"] = product("model.output_attn_res");
  }
  for (const [name, tensor] of Object.entries(found)) {
    const [, layer, of = ""] = /^model\.layers\.(\d+)\.(.+)$/.exec(name) ?? [];
    if (layer === undefined) continue;
    const put = (theirs: string, made: GgufTensor) =>
      void (tensors[`blk.${layer}.${theirs}`] = made);
    const { shape, data } = tensor;
    const [, conv] = /\.([qkv])_conv1d\.weight$/.exec(of) ?? [];
    const [, expert, part] =
      /^block_sparse_moe\.experts\.(\d+)\.(w\d)\.weight$/.exec(of) ?? [];
    const [, fused] = /^(.*_res)_norm\.weight$/.exec(of) ?? [];
    if (of in NAMES) put(NAMES[of]!, tensor);
    else if (conv !== undefined) {
      put(`ssm_conv1d_${conv}.weight`, {
        shape: [1, shape[0]!, 1, shape[2]!],
        data,
      });
    } else if (of === "self_attn.A_log") {
      const decays = data.slice(0, heads).map((x) => -Math.exp(x));
      put("ssm_a", {
        shape: name.endsWith("A_log") && shape.length === 4
          ? [1, 1, heads, 1]
          : [heads],
        data: decays,
      });
    } else if (of === "self_attn.g_proj.weight") {
      const isFull = full.includes(Number(layer) + 1);
      put(isFull ? "attn_gate.weight" : "ssm_g.weight", tensor);
    } else if (of === "self_attn.kv_b_proj.weight") {
      const keys = new Float32Array(heads * latent * nope);
      const rest = new Float32Array(heads * values * latent);
      for (let head = 0; head < heads; head++) {
        const rows = data.subarray(head * (nope + values) * latent);
        for (let row = 0; row < nope; row++) {
          for (let i = 0; i < latent; i++) {
            keys[(head * latent + i) * nope + row] = rows[row * latent + i]!;
          }
        }
        rest.set(
          rows.subarray(nope * latent, (nope + values) * latent),
          head * values * latent,
        );
      }
      put("attn_k_b.weight", { shape: [heads, latent, nope], data: keys });
      put("attn_v_b.weight", { shape: [heads, values, latent], data: rest });
    } else if (part !== undefined) {
      const stacked = `blk.${layer}.${EXPERTS[part]}.weight`;
      const experts = number("num_experts");
      tensors[stacked] ??= {
        shape: [experts, ...shape],
        data: new Float32Array(experts * data.length),
      };
      tensors[stacked].data.set(data, Number(expert) * data.length);
    } else if (fused !== undefined) {
      put(
        `${PRODUCTS[fused]}.weight`,
        product(`model.layers.${layer}.${fused}`),
      );
    }
  }
  const u32 = (field: string) => ({ u32: number(field) });
  const f32 = (field: string) => ({ f32: number(field) });
  const layers = number("num_hidden_layers");
  const delta = text.linear_attn_config;
  const keys: { [key: string]: GgufValue } = {
    block_count: { u32: layers },
    context_length: {
      u32: Number(text["max_position_embeddings"] ?? text["model_max_length"]),
    },
    embedding_length: u32("hidden_size"),
    feed_forward_length: u32("intermediate_size"),
    vocab_size: u32("vocab_size"),
    "attention.head_count": u32("num_attention_heads"),
    "attention.head_count_kv": {
      i32s: Array.from(
        { length: layers },
        (_, layer) => Number(full.includes(layer + 1)),
      ),
    },
    "attention.layer_norm_rms_epsilon": f32("rms_norm_eps"),
    "attention.kv_lora_rank": { u32: latent },
    "attention.key_length": { u32: latent + rotated },
    "attention.key_length_mla": { u32: nope + rotated },
    "attention.value_length_mla": { u32: values },
    "rope.dimension_count": { u32: rotated },
    "ssm.conv_kernel": { u32: 4 },
    "kda.head_dim": { u32: delta.head_dim },
    expert_count: u32("num_experts"),
    expert_used_count: u32("num_experts_per_token"),
    expert_shared_count: u32("num_shared_experts"),
    expert_feed_forward_length: u32("moe_intermediate_size"),
    expert_weights_scale: f32("routed_scaling_factor"),
    expert_gating_func: { u32: SIGMOID },
    leading_dense_block_count: u32("first_k_dense_replace"),
    ...name === "kimi-k3"
      ? {
        "attention.q_lora_rank": u32("q_lora_rank"),
        "kda.gate_lower_bound": { f32: -5 },
        expert_weights_norm: { bool: true },
        expert_latent_length: u32("routed_expert_hidden_size"),
        "activation.situ_beta": f32("activation_situ_beta"),
        "activation.situ_linear_beta": f32("activation_situ_linear_beta"),
        "attn_res.block_size": u32("attn_res_block_size"),
      }
      : { "rope.freq_base": { f32: 10000 } },
  };
  mkdirSync(to);
  const part = (n: number) => join(to, `kimi-0000${n}-of-00002.gguf`);
  const all = Object.entries(tensors);
  const half = Math.floor(all.length / 2);
  for (const n of [1, 2]) {
    const own = Object.fromEntries(
      n === 1 ? all.slice(0, half) : all.slice(half),
    );
    const header: { [key: string]: GgufValue } = n === 1
      ? {
        "general.architecture": { text: name },
        ...Object.fromEntries(
          Object.entries(keys).map(([key, value]) => [`${name}.${key}`, value]),
        ),
      }
      : { "split.no": { u32: 1 }, "split.count": { u32: 2 } };
    writeFileSync(part(n), Buffer.concat([...writeGguf(header, own)]));
  }
  return part(1);
}

for (
  const [checkpoint, name] of [
    ["kimilinear-12e", "kimi-linear"],
    ["kimik3-12e", "kimi-k3"],
  ] as const
) {
  t.test(
    `a file of ${name} as llama.cpp's converter writes it computes the same as its folder`,
    { skip },
    async (t) => {
      const folder = temporaryFolder(t);
      const from = join(folder, "from");
      const text = await withEqualHeads(checkpointFolder(checkpoint), from);
      const to = join(folder, "to");
      const converted = await convert(from, { to, text, name });
      const wanted = await greedy(t, from, "ep=1");
      same(t, await greedy(t, converted, "ep=2"), wanted, "converted");
      const out = join(folder, "written.gguf");
      const written = await switchyard([
        ...["quantize", from, "--to", "q8_0", "--out", out, "--rule", "*=keep"],
      ]);
      t.equal(written.code, 0, written.err);
      same(t, await greedy(t, out, "tp=2"), wanted, "written");
      const [ours, theirs] = await Promise.all([out, converted].map(headerOf));
      const counts = { tensor_count: BigInt, kv_count: BigInt };
      t.match(ours!.keys, { ...theirs!.keys, ...counts }, "keys");
      t.match(configOf(out, ours!), configOf(out, theirs!));
    },
  );
}

t.test("other heads of Kimi Delta Attention cannot be written", async (t) => {
  const { code, err } = await switchyard([
    ...["quantize", checkpointFolder("kimik3-12e"), "--to", "q8_0"],
    ...["--out", join(temporaryFolder(t), "k3.gguf")],
  ]);
  t.equal(code, 1);
  t.match(
    err,
    "'linear_attn_config.num_heads' is 6, and files of architecture 'kimi-k3' cannot represent it",
  );
});

async function headerOf(path: string) {
  const file = await files.open(path);
  const header = await readGguf(path, file);
  await file.close();
  return header;
}

/** Greedy tokens with log-probabilities. */
interface Generated {
  readonly tokens: readonly number[];
  readonly logprobs: readonly { readonly logprob: number }[];
}

/** Compares greedy tokens and their log-probabilities. Decays differ in the last bits. */
function same(t: Test, found: Generated, wanted: Generated, of: string): void {
  t.strictSame(found.tokens, wanted.tokens, of);
  found.logprobs.forEach(({ logprob }, i) => {
    const difference = Math.abs(logprob - wanted.logprobs[i]!.logprob);
    t.ok(difference < 2e-5, `${of}: ${difference}`);
  });
}

async function greedy(
  t: Test,
  model: string,
  mesh: string,
): Promise<Generated> {
  const { out, code, err } = await switchyard([
    ...["generate", model, "--tokens", "5,60,7,3", "-n", "6", "--json"],
    ...["--adapter", "cpu", "--mesh", mesh, "--logprobs", "1"],
  ]);
  t.equal(code, 0, err);
  return (JSON.parse(out) as { sequences: readonly [Generated] }).sequences[0];
}
