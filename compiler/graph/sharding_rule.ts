/** What the sharding rule of a primitive is made of, and what it may look at. */

import type { Node, NodeOf, Primitive, PrimitiveParams } from "./graph.ts";
import { LINEAR, type LinearRule } from "./linear.ts";
import type { Over } from "./sharding.ts";

/**
 * What a primitive does along an axis of an operand.
 *
 * - `pass`: it works on any part of it; the result has the same sharding.
 * - `reduce`: it sums over it; over a sharded axis the result is unreduced.
 * - `replicated`: it needs all of it on every rank.
 * - `local`: it stays as it is, and the result does not see it.
 * - mesh axes: it must be sharded over exactly these; with `sum`, it is summed over besides.
 */
export type Role =
  | "pass"
  | "reduce"
  | "replicated"
  | "local"
  | readonly string[]
  | { readonly sum: readonly string[] };

/** What rules know of the model and the mesh. */
export interface Known {
  /** Whether the length of an axis is known at run time only, on the ranks or at all. */
  isRagged(axis: string): boolean;
  /** Whether the positions that a dilated axis takes are all of another one's, but for those between. */
  fills(params: PrimitiveParams["dilate"]): boolean;
  /** Where an axis is placed. */
  placedOver(axis: string): readonly string[];
  /** Where the tokens of one sequence are on one rank. Throws where no placement has that. */
  sequenceOver(node: Node, by: Node, axis: string): readonly string[];
  /** Where the items of a ragged axis are that the items of an input number; undefined: they may be anywhere. */
  itemsOver(axis: string, ids: Node): readonly string[] | undefined;
  /** Whether the tokens of a routing group are on one rank. */
  isGroupTogether(axis: string, group: Node | undefined): boolean;
  /** Where the tokens of a routing are while its experts work on them. */
  tokensOver(route: Node, axis: string): readonly string[];
  /** Where experts of an axis are then. */
  expertsOver(axis: string): readonly string[];
}

/** The rule of a primitive. */
export interface Rule<P extends Primitive> {
  readonly role: (
    node: NodeOf<P>,
    at: { readonly operand: number; readonly axis: string },
    known: Known,
  ) => Role;
  /** Axes of the result that are sharded otherwise than axes of that name on operands. */
  readonly result?: (node: NodeOf<P>, over: Over, known: Known) => Over;
  /** The mesh axes along which ranks hold terms of the result, besides those that axes are summed over. */
  readonly terms?: (node: NodeOf<P>, known: Known) => readonly string[];
  /** The operand that says of which sequence of a cache each token is. */
  readonly sequence?: number;
  /** The operand whose elements are only moved: it may be unreduced, and so is the result then. */
  readonly moves?: number;
  /** Whether the result is a term of the same sum where some operands are: it may have another order then. */
  readonly linear: LinearRule<P>;
}

/** An axis along which a cache is read or written by index: its sequences may be apart, and anything else is on the rank. */
export function ofCache(axis: string, known: Known): Role {
  const over = known.placedOver(axis);
  return over.length > 0 ? over : "local";
}

/** Primitives whose parameter `over` is one axis. */
type AlongAxis = {
  [P in Primitive]: PrimitiveParams[P] extends { readonly over: string } ? P
    : never;
}[Primitive];

/** An axis `over` that has to be replicated; all others pass. */
export function replicatedOver<P extends AlongAxis>(): Rule<P> {
  const role: Rule<P>["role"] = ({ params: { over } }, { axis }) =>
    axis === over ? "replicated" : "pass";
  return { role, linear: LINEAR.never };
}
