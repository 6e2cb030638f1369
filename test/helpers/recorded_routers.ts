/** Routers that other systems recorded, with the names and options of those systems. */

import type { RouterOptions } from "./routing_vectors.ts";

/** Recorded matrix, row by row. */
export interface RecordedMatrix {
  readonly shape: readonly number[];
  readonly data: readonly number[];
}

/** Options and operands of a recorded router. */
export interface RouterRecord {
  readonly preset: string;
  /** Choices per token. */
  readonly k: number;
  readonly capacity?: number;
  readonly capacity_factor?: number;
  readonly min_capacity?: number;
  readonly num_groups?: number;
  readonly group_topk?: number;
  readonly scaling_factor?: number;
  /** Gumbel noise, [token, expert]. */
  readonly noise?: RecordedMatrix | null;
  readonly expert_bias?: RecordedMatrix;
}

/** Returns the options of `route` for a recorded router. Throws Error if the preset is unknown. */
export function recordedOptions(record: RouterRecord): RouterOptions {
  const { capacity_factor: factor, min_capacity: minimum } = record;
  const capacity = {
    ...factor === undefined ? {} : { factor },
    ...minimum === undefined ? {} : { minimum },
  };
  const known: { readonly [name: string]: RouterOptions } = {
    "fairscale-top2-nonoise": { preset: "fairscale.top2" },
    "fairscale-top2-gumbel": { preset: "fairscale.top2" },
    "deepspeed-top1-norts": {
      preset: "deepspeed.top1",
      capacity: { ...capacity, drop: "position" },
    },
    "deepspeed-top2-nosample": { preset: "deepspeed.top2", capacity },
    "deepspeed-topk-probs": { preset: "deepspeed.topk", capacity },
    "deepspeed-topk-position": {
      preset: "deepspeed.topk",
      capacity: { ...capacity, drop: "position" },
    },
    "tutel-topk": { preset: "tutel.topk", capacity },
    "tutel-topk-bpr": { preset: "tutel.prioritised", capacity },
    "megatron-softmax-post-probs": { preset: "megatron.postSoftmax", capacity },
    "megatron-softmax-pre-probs": { preset: "megatron.preSoftmax", capacity },
    "megatron-sigmoid-post-probs": { preset: "megatron.sigmoid", capacity },
    "megatron-sigmoid-bias-group": {
      preset: "megatron.sigmoid",
      expertGroups: { count: record.num_groups!, keep: record.group_topk! },
      scale: record.scaling_factor!,
    },
  };
  const options = known[record.preset];
  if (options === undefined) throw new Error(`no router '${record.preset}'`);
  return options;
}
