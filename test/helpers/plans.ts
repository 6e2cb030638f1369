/** Valid plans for tests, returned as copies that tests may change. */

import {
  compile,
  type CompileOptions,
  type Model,
  model,
  upTo,
} from "../../compiler/mod.ts";
import { publishedModel } from "../../models/published.ts";
import type { Plan } from "../../spec/plan/plan.ts";
import { mixtralLayer } from "./mixtral_layer.ts";

/** Type without read-only fields. */
export type Mutable<T> = T extends object
  ? { -readonly [K in keyof T]: Mutable<T[K]> }
  : T;

/** Mixture-of-experts layer with eight experts. */
export const smallLayer = model(
  { token: upTo(64), embed: 16, ffn: 32, expert: 8 },
  (m) => ({ y: mixtralLayer(m).y }),
);

/** Small OLMoE decoder with attention, KV cache, rotary embeddings and integer inputs. */
export function smallDecoder(layers: number, experts: number): Model {
  const { build } = publishedModel({
    architectures: ["OlmoeForCausalLM"],
    hidden_act: "silu",
    attention_bias: false,
    hidden_size: 64,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    num_hidden_layers: layers,
    vocab_size: 128,
    num_experts: experts,
    num_experts_per_tok: 2,
    intermediate_size: 32,
  });
  return build({ maxTokens: 32, maxSequences: 4, maxContext: 64 });
}

/** Returns a deep copy of a plan. */
export function copyPlan(plan: Plan): Mutable<Plan> {
  return copyOf(plan) as Mutable<Plan>;
}

function copyOf(value: unknown): unknown {
  if (typeof value !== "object" || value === null) return value;
  if (Array.isArray(value)) return value.map(copyOf);
  const items = Object.entries(value).filter(([, item]) => item !== undefined);
  return Object.fromEntries(items.map(([key, item]) => [key, copyOf(item)]));
}

const plans = new Map<string, Promise<Plan>>();

/** Returns a copy of the valid plan of a model on a mesh. Compiles it once. */
export async function goodPlan(
  source: "layer" | "decoder",
  mesh: NonNullable<CompileOptions["mesh"]>,
  chunks = 1,
): Promise<Mutable<Plan>> {
  const key = `${source} ${JSON.stringify(mesh)} ${chunks}`;
  const of = source === "layer" ? smallLayer : smallDecoder(2, 6);
  const plan = plans.get(key) ?? compile(of, { mesh, chunks });
  plans.set(key, plan);
  return copyPlan(await plan);
}
