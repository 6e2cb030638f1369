/** What changes the sharding of a value, and nothing else of it: only resharding makes these (see sharding/reshard.ts). */

import type { FusionClass } from "./primitives/definition.ts";

/**
 * Their parameters. Each has one operand. Along `axis`, if it has one, the value is sharded over more or fewer mesh axes; below
 * `shard`, the axis is `axis` on the operand and `to` on the result.
 */
export interface CollectiveParams {
  /** All of an axis, of which ranks along `over` have shards. */
  allGather: {
    readonly over: readonly string[];
    readonly axis: string;
    readonly to: string;
  };
  /** Each rank keeps its own shard along `axis`; nothing is sent. */
  allSlice: { readonly axis: string; readonly to: string };
  /** The terms that ranks hold along the mesh axes `over`, added as a balanced tree by group rank: on every rank. */
  allReduce: { readonly over: readonly string[] };
  /** The same sum; each rank is given its shard along `axis`. */
  reduceScatter: {
    readonly over: readonly string[];
    readonly axis: string;
    readonly to: string;
  };
}

/** Names of the collectives. */
export type Collective = keyof CollectiveParams;

/** How kernels take each: only what sends nothing is an expression within another kernel. */
const COLLECTIVES: { readonly [C in Collective]: FusionClass } = {
  allGather: "kernel",
  allSlice: "inline",
  allReduce: "kernel",
  reduceScatter: "kernel",
};

/** Whether a primitive is one. */
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
