/**
 * Configurations of small MoE models on four ranks, and whether the simulator's order of them equals the measured
 * order.
 */

import {
  compile,
  type CompileOptions,
  type Model,
  type TuningTable,
} from "../../compiler/mod.ts";
import {
  type ExpertLoad,
  simulate,
  type Workload,
} from "../../engine/planner/simulate/mod.ts";
import { publishedModel } from "../../models/published.ts";
import { CPU_LIMITS } from "../../runtime/cpu/mod.ts";
import type { Machine, Plan } from "../../spec/mod.ts";
import { median } from "../measure.ts";

/** A mesh, a strategy and chunks. */
export type Configuration = Pick<
  CompileOptions,
  "mesh" | "chunks" | "deduplicate" | "dispatcher" | "numerics"
>;

const DEFAULTS = { chunks: 1, deduplicate: false } as const;
const DEDUPLICATED = { chunks: 1, deduplicate: true } as const;
const GATHER = { dispatcher: "allGather", numerics: "fast" } as const;

/** A compared step: its sequences, and their tokens in it and before it. */
interface OrderedStep {
  readonly sequences: number;
  readonly length: number;
  readonly position: number;
}

/** A comparison. Each is measured once, and saved as `results/NAME.json`. */
interface Order {
  /** Fields of `config.json` that differ between orders. */
  readonly config: { readonly [field: string]: number };
  readonly steps: { readonly [S in Step]: OrderedStep };
  readonly configurations: { readonly [name: string]: Configuration };
}

/** Kinds of steps. */
export type Step = "prefill" | "decode";

/** The listed meshes, strategies and chunks. */
const WRITTEN: Order["configurations"] = {
  "ep=4": { mesh: { ep: 4 }, ...DEFAULTS },
  "ep=4, 2 chunks": { mesh: { ep: 4 }, ...DEFAULTS, chunks: 2 },
  "ep=4, 4 chunks": { mesh: { ep: 4 }, ...DEFAULTS, chunks: 4 },
  "ep=4, deduplicated": { mesh: { ep: 4 }, ...DEDUPLICATED },
  "ep=4, deduplicated, 2 chunks": {
    mesh: { ep: 4 },
    ...DEDUPLICATED,
    chunks: 2,
  },
  "ep=4, all-gather": { mesh: { ep: 4 }, ...GATHER },
  "ep=2,tp=2": { mesh: { ep: 2, tp: 2 }, ...DEFAULTS },
  "ep=2,tp=2, 2 chunks": { mesh: { ep: 2, tp: 2 }, ...DEFAULTS, chunks: 2 },
  "ep=2,tp=2, deduplicated": { mesh: { ep: 2, tp: 2 }, ...DEDUPLICATED },
  "dp=2,ep=2": { mesh: { dp: 2, ep: 2 }, ...DEFAULTS },
  "dp=2,ep=2, 2 chunks": { mesh: { dp: 2, ep: 2 }, ...DEFAULTS, chunks: 2 },
  "dp=2,ep=2, deduplicated": { mesh: { dp: 2, ep: 2 }, ...DEDUPLICATED },
  "dp=2,ep=2, all-gather": { mesh: { dp: 2, ep: 2 }, ...GATHER },
  "dp=2,tp=2": { mesh: { dp: 2, tp: 2 } },
  "dp=4": { mesh: { dp: 4 } },
  "tp=4": { mesh: { tp: 4 } },
};

/**
 * The orders. `order` existed when the simulator was written. `order_mpi` was chosen and declared before any of it was
 * measured, and the simulator was not changed afterwards. It has small experts and many choices per token: according to
 * the prediction, exchanges then separate configurations by more than the variation between rounds.
 */
export const ORDERS: { readonly [name: string]: Order } = {
  order: {
    config: {
      num_hidden_layers: 4,
      hidden_size: 256,
      vocab_size: 1024,
      num_attention_heads: 8,
      num_key_value_heads: 4,
      head_dim: 32,
      num_experts: 16,
      num_experts_per_tok: 4,
      moe_intermediate_size: 256,
      intermediate_size: 256,
    },
    steps: {
      prefill: { sequences: 16, length: 16, position: 0 },
      decode: { sequences: 16, length: 1, position: 16 },
    },
    configurations: WRITTEN,
  },
  order_mpi: {
    config: {
      num_hidden_layers: 4,
      hidden_size: 256,
      vocab_size: 1024,
      num_attention_heads: 4,
      num_key_value_heads: 4,
      head_dim: 32,
      num_experts: 64,
      num_experts_per_tok: 4,
      moe_intermediate_size: 64,
      intermediate_size: 64,
    },
    steps: {
      prefill: { sequences: 16, length: 8, position: 0 },
      decode: { sequences: 16, length: 1, position: 8 },
    },
    configurations: {
      "ep=4": { mesh: { ep: 4 }, ...DEFAULTS },
      "ep=4, 4 chunks": { mesh: { ep: 4 }, ...DEFAULTS, chunks: 4 },
      "ep=4, 16 chunks": { mesh: { ep: 4 }, ...DEFAULTS, chunks: 16 },
      "ep=4, deduplicated": { mesh: { ep: 4 }, ...DEDUPLICATED },
      "ep=4, deduplicated, 8 chunks": {
        mesh: { ep: 4 },
        ...DEDUPLICATED,
        chunks: 8,
      },
      "ep=4, all-gather": { mesh: { ep: 4 }, ...GATHER },
      "ep=2,tp=2": { mesh: { ep: 2, tp: 2 }, ...DEFAULTS },
      "ep=2,tp=2, 8 chunks": { mesh: { ep: 2, tp: 2 }, ...DEFAULTS, chunks: 8 },
      "ep=2,tp=2, deduplicated, 16 chunks": {
        mesh: { ep: 2, tp: 2 },
        ...DEDUPLICATED,
        chunks: 16,
      },
      "dp=2,ep=2": { mesh: { dp: 2, ep: 2 }, ...DEFAULTS },
      "dp=2,ep=2, 16 chunks": {
        mesh: { dp: 2, ep: 2 },
        ...DEFAULTS,
        chunks: 16,
      },
      "dp=2,ep=2, all-gather": { mesh: { dp: 2, ep: 2 }, ...GATHER },
      "dp=2,tp=2": { mesh: { dp: 2, tp: 2 } },
      "dp=4": { mesh: { dp: 4 } },
      "tp=4": { mesh: { tp: 4 } },
    },
  },
};

/** Returns an order by name. Throws RangeError if it does not exist. */
export function orderNamed(name: string): Order {
  const order = ORDERS[name];
  if (order) return order;
  throw new RangeError(
    `Cannot find order '${name}': there is none. Give one of ${
      Object.keys(ORDERS).join(", ")
    }`,
  );
}

/** Builds a small decoder with the structure of Qwen3. */
function orderedModel({ config, steps: { prefill } }: Order): Model {
  const { sequences, length } = prefill;
  return publishedModel({
    model_type: "qwen3_moe",
    hidden_act: "silu",
    rms_norm_eps: 1e-6,
    architectures: ["Qwen3MoeForCausalLM"],
    norm_topk_prob: true,
    rope_theta: 10000,
    tie_word_embeddings: false,
    max_position_embeddings: 64,
    ...config,
  }).build({
    maxTokens: sequences * length,
    maxSequences: sequences,
    maxContext: 64,
    next: { candidates: 1 },
  });
}

/** Compiles a configuration for ranks on the CPU. */
export async function compileOrdered(
  { order, configuration, tuning, limits = CPU_LIMITS }: {
    readonly order: Order;
    readonly configuration: Configuration;
    readonly tuning: TuningTable;
    readonly limits?: { readonly [limit: string]: number };
  },
): Promise<Plan> {
  return await compile(orderedModel(order), {
    ...configuration,
    limits,
    tuning,
  });
}

/** The measurements of one job. */
export interface Measured {
  /** Tiles of the plans. */
  readonly tuning: TuningTable;
  readonly machine: Machine;
  /** How often the routers chose each expert in each step. */
  readonly experts: { readonly [S in Step]: ExpertLoad };
  /** Milliseconds of each configuration: the median of each round. */
  readonly times: {
    readonly [name: string]: { readonly [S in Step]: readonly number[] };
  };
}

/** A step of a configuration, in milliseconds. */
export interface Ordered {
  readonly name: string;
  readonly measured: number;
  readonly predicted: number;
  readonly rounds: readonly number[];
}

/** A measured run and its machine. */
export interface OrderDocument {
  readonly machine: string;
  readonly where: string;
  readonly measured: Measured;
}

/**
 * Predicts every measured configuration and sorts them by measured time. `plans` stores the plans for use with another
 * machine.
 */
export async function orderOf(
  order: Order,
  { tuning, machine, experts, times }: Measured,
  { plans = new Map() }: { readonly plans?: Map<string, Plan> } = {},
): Promise<{ readonly [S in Step]: readonly Ordered[] }> {
  const found: { [S in Step]: Ordered[] } = { prefill: [], decode: [] };
  for (const [name, rounds] of Object.entries(times)) {
    const plan = plans.get(name) ?? await compileOrdered({
      order,
      configuration: order.configurations[name]!,
      tuning,
    });
    plans.set(name, plan);
    for (const step of ["prefill", "decode"] as const) {
      const workload = { ...workloadOf(order, step), experts: experts[step] };
      found[step].push({
        name,
        measured: median(rounds[step]),
        rounds: rounds[step],
        predicted: 1000 * simulate(plan, machine, workload).seconds,
      });
    }
  }
  const sorted = (all: readonly Ordered[]) =>
    [...all].sort((a, b) => a.measured - b.measured);
  return { prefill: sorted(found.prefill), decode: sorted(found.decode) };
}

function workloadOf({ steps }: Order, step: Step): Workload {
  const { sequences, length, position } = steps[step];
  return { tokens: sequences * length, sequences, past: position };
}

/** Returns whether two configurations are separated: every round of one was slower than all rounds of the other. */
export function areApart(
  { rounds: a }: Ordered,
  { rounds: b }: Ordered,
): boolean {
  return Math.max(...a) < Math.min(...b) || Math.max(...b) < Math.min(...a);
}

/**
 * Returns Kendall's tau of measured and predicted times: among the counted pairs, concordant minus discordant pairs,
 * relative to all.
 */
export function kendall(
  times: readonly Ordered[],
  counts: (a: Ordered, b: Ordered) => boolean = () => true,
): { readonly tau: number; readonly pairs: number } {
  let [agree, pairs] = [0, 0];
  for (const [i, a] of times.entries()) {
    for (const b of times.slice(i + 1)) {
      if (!counts(a, b)) continue;
      agree += Math.sign(a.measured - b.measured) *
        Math.sign(a.predicted - b.predicted);
      pairs++;
    }
  }
  return { tau: agree / pairs, pairs };
}
