/** Collectives: nodes that change only the sharding of a value. Only resharding creates them (sharding/reshard.ts). */

import type { FusionClass } from "./primitives/definition.ts";

/**
 * Parameters of collectives. Each has one operand. Along `axis`, if given, the value is sharded over more or fewer mesh
 * axes. After `shard`, the axis is `axis` on the operand and `to` on the result.
 */
export interface CollectiveParams {
  /** Gathers an axis that ranks along `over` have shards of. */
  allGather: {
    readonly over: readonly string[];
    readonly axis: string;
    readonly to: string;
  };
  /** Slices the rank's own shard along `axis`; sends nothing. */
  allSlice: { readonly axis: string; readonly to: string };
  /** Adds the terms of the ranks along the mesh axes `over` as a balanced tree by group rank, on every rank. */
  allReduce: { readonly over: readonly string[] };
  /** The same sum. Each rank receives its shard along `axis`. */
  reduceScatter: {
    readonly over: readonly string[];
    readonly axis: string;
    readonly to: string;
  };
  /** Sends the value from the ranks of one stage to those of another, along the mesh axis `over`. */
  send: {
    readonly over: readonly string[];
    readonly stages: readonly [source: number, destination: number];
  };
}

/** Names of the collectives. */
export type Collective = keyof CollectiveParams;

/** Fusion class of each. Only the one that sends nothing can be an expression in another kernel. */
const COLLECTIVES: { readonly [C in Collective]: FusionClass } = {
  allGather: "kernel",
  allSlice: "inline",
  allReduce: "kernel",
  reduceScatter: "kernel",
  send: "kernel",
};

/** Whether a primitive is a collective. */
export function isCollective(primitive: string): primitive is Collective {
  return Object.hasOwn(COLLECTIVES, primitive);
}

/** Rows of a table for all of them. */
export function ofCollectives<T>(
  row: (name: Collective, fusion: FusionClass) => T,
): { readonly [C in Collective]: T } {
  return Object.fromEntries(
    Object.entries(COLLECTIVES).map(([name, fusion]) =>
      [name, row(name as Collective, fusion)] as const
    ),
  ) as { [C in Collective]: T };
}
