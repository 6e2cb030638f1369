/** The bundled checkpoint for the other projects. Its weights are in f32, which is exact for bf16. */

import { readFileSync } from "node:fs";
import { openSafetensors, readTensor } from "../../runtime/mod.ts";

/** The folder of the checkpoint. */
export const DEMO_FOLDER = new URL("../../examples/demo-lm/", import.meta.url);

/** The work that is compared: greedy tokens after a prompt. */
export const DEMO_WORK = { prompt: 256, newTokens: 33 };

/** Tokens of the prompt. */
export const DEMO_PROMPT: readonly number[] = Array.from(
  { length: DEMO_WORK.prompt },
  (_, i) => 3 + i * 37 % 2000,
);

/** Sizes of an OLMoE, with the names of its config.json. */
export interface DemoConfig {
  readonly hidden_size: number;
  readonly intermediate_size: number;
  readonly max_position_embeddings: number;
  readonly num_attention_heads: number;
  readonly num_experts: number;
  readonly num_experts_per_tok: number;
  readonly num_hidden_layers: number;
  readonly num_key_value_heads: number;
  readonly rms_norm_eps: number;
  readonly rope_theta: number;
  readonly vocab_size: number;
}

/** A layer's weights, with outputs as the first axis and experts one after the other. */
export interface DemoLayer {
  readonly norm: Float32Array;
  readonly q: Float32Array;
  readonly k: Float32Array;
  readonly v: Float32Array;
  readonly o: Float32Array;
  readonly qNorm: Float32Array;
  readonly kNorm: Float32Array;
  readonly ffnNorm: Float32Array;
  readonly router: Float32Array;
  readonly gate: readonly Float32Array[];
  readonly up: readonly Float32Array[];
  readonly down: readonly Float32Array[];
}

/** The checkpoint. */
export interface Demo {
  readonly config: DemoConfig;
  /** Also the output matrix. */
  readonly embedding: Float32Array;
  readonly norm: Float32Array;
  readonly layers: readonly DemoLayer[];
}

/** Reads the checkpoint. */
export async function readDemo(): Promise<Demo> {
  const config = JSON.parse(
    readFileSync(new URL("config.json", DEMO_FOLDER), "utf8"),
  ) as DemoConfig;
  // A copy, because slices of a Buffer share its memory.
  const bytes = new Uint8Array(
    readFileSync(new URL("model.safetensors", DEMO_FOLDER)),
  );
  const tensors = await openSafetensors([{
    name: "model.safetensors",
    size: bytes.length,
    read: (offset, length) =>
      Promise.resolve(bytes.subarray(offset, offset + length)),
  }]);
  const f32 = async (name: string) =>
    (await readTensor(tensors.get(`model.${name}.weight`)!))
      .data as Float32Array;
  const layers: DemoLayer[] = [];
  for (let i = 0; i < config.num_hidden_layers; i++) {
    const tensor = (name: string) => f32(`layers.${i}.${name}`);
    const experts = (name: string) =>
      Promise.all(
        Array.from(
          { length: config.num_experts },
          (_, e) => tensor(`mlp.experts.${e}.${name}_proj`),
        ),
      );
    layers.push({
      norm: await tensor("input_layernorm"),
      q: await tensor("self_attn.q_proj"),
      k: await tensor("self_attn.k_proj"),
      v: await tensor("self_attn.v_proj"),
      o: await tensor("self_attn.o_proj"),
      qNorm: await tensor("self_attn.q_norm"),
      kNorm: await tensor("self_attn.k_norm"),
      ffnNorm: await tensor("post_attention_layernorm"),
      router: await tensor("mlp.gate"),
      gate: await experts("gate"),
      up: await experts("up"),
      down: await experts("down"),
    });
  }
  return {
    config,
    embedding: await f32("embed_tokens"),
    norm: await f32("norm"),
    layers,
  };
}

/** Concatenates matrices. */
export function joined(parts: readonly Float32Array[]): Float32Array {
  const all = new Float32Array(
    parts.reduce((sum, { length }) => sum + length, 0),
  );
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}
