/**
 * Meaning of each dispatcher for shardings: the sharding of tokens and experts during expert computation. All else
 * follows from the rules.
 */

import type { Dispatcher } from "../../spec/strategies.ts";

/** Mesh axes. */
type Over = readonly string[];

/** Shardings during expert computation. */
export interface DispatcherRule {
  /**
   * Returns the sharding of a token axis from its current one, `has`. `experts`: mesh axes of the experts. `missing`:
   * mesh axes that shard no token axis yet; this axis gets them.
   */
  tokens(
    has: Over,
    placed: { readonly experts: Over; readonly missing: Over },
  ): Over;
  /** The sharding of experts. Their parameters are stored as placed, and gathered if this is less. */
  experts(placed: Over): Over;
}

/** The rules. A dispatcher without one does not compile. */
export const DISPATCHER_RULES: { readonly [D in Dispatcher]: DispatcherRule } =
  {
    /** Tokens are sharded over the mesh axes of experts, and rows are sent. */
    allToAll: {
      tokens: (has, { missing }) => [...has, ...missing],
      experts: (placed) => placed,
    },
    /**
     * Tokens are replicated over the mesh axes of experts. A rank has the rows of its own experts, and the result of
     * combine is a term of a sum.
     */
    allGather: {
      tokens: (has, { experts }) =>
        has.filter((name) => !experts.includes(name)),
      experts: (placed) => placed,
    },
    /** Tokens stay on their ranks and experts are replicated, so no row is sent. */
    gatherWeights: {
      tokens: (has, { missing }) => [...has, ...missing],
      experts: () => [],
    },
  };
