/** Good plans for tests, made by the compiler, as fresh copies that a test may break. */

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

/** The same type with nothing read-only, for breaking plans. */
export type Mutable<T> = T extends object
  ? { -readonly [K in keyof T]: Mutable<T[K]> }
  : T;

/** A mixture-of-experts layer with eight experts, small enough to run anywhere. */
export const smallLayer = model(
  { token: upTo(64), embed: 16, ffn: 32, expert: 8 },
  (m) => ({ y: mixtralLayer(m).y }),
);

/** A small OLMoE decoder: attention, cache, rotary tables, integer inputs. */
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

/** A copy of a plan that shares nothing with it. */
export function copyPlan(plan: Plan): Mutable<Plan> {
  return copyOf(plan) as Mutable<Plan>;
}

function copyOf(value: unknown): unknown {
  if (typeof value !== "object" || value === null) return value;
  if (Array.isArray(value)) return value.map(copyOf);
  const items = Object.entries(value).filter(([, item]) => item !== undefined);
  return Object.fromEntries(items.map(([key, item]) => [key, copyOf(item)]));
}

const made = new Map<string, Promise<Plan>>();

/** A good plan of `what` for a mesh; compiled once, a fresh copy each time. */
export async function goodPlan(
  what: "layer" | "decoder",
  mesh: NonNullable<CompileOptions["mesh"]>,
  chunks = 1,
): Promise<Mutable<Plan>> {
  const key = `${what} ${JSON.stringify(mesh)} ${chunks}`;
  const source = what === "layer" ? smallLayer : smallDecoder(2, 6);
  const plan = made.get(key) ?? compile(source, { mesh, chunks });
  made.set(key, plan);
  return copyPlan(await plan);
}
