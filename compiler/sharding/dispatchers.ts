/** What each dispatcher means for shardings: how tokens and experts are sharded while experts work. All else follows from the rules. */

import type { Dispatcher } from "../../spec/strategies.ts";

/** Mesh axes. */
type Over = readonly string[];

/** The shardings while experts work on tokens. */
export interface DispatcherRule {
  /**
   * Of an axis of tokens that is sharded over `has`; `experts` are the mesh axes that experts are placed over, and `missing`
   * those of them that no axis of tokens is sharded over, to be taken by this one.
   */
  tokens(
    has: Over,
    placed: { readonly experts: Over; readonly missing: Over },
  ): Over;
  /** Of experts. Their parameters are stored as they are placed, and gathered where this is less. */
  experts(placed: Over): Over;
}

/** The rules. A dispatcher without one does not compile. */
export const DISPATCHER_RULES: { readonly [D in Dispatcher]: DispatcherRule } =
  {
    /** Tokens are sharded over what experts are sharded over: rows are sent. */
    allToAll: {
      tokens: (has, { missing }) => [...has, ...missing],
      experts: (placed) => placed,
    },
    /** Tokens are replicated over it: a rank has the rows of its own experts, and what combines them is a term of a sum. */
    allGather: {
      tokens: (has, { experts }) =>
        has.filter((name) => !experts.includes(name)),
      experts: (placed) => placed,
    },
    /** Tokens stay where rows would start from, and experts are replicated: no row is sent. */
    gatherWeights: {
      tokens: (has, { missing }) => [...has, ...missing],
      experts: () => [],
    },
  };
