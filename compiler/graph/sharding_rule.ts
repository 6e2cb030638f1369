/** Sharding rules of primitives, and the facts that they use. */

import type { Node, NodeOf, Primitive, PrimitiveParams } from "./graph.ts";
import { LINEAR, type LinearRule } from "./gradients/linear.ts";
import type { Over } from "./sharding.ts";

/**
 * Behaviour of a primitive along an axis of an operand.
 *
 * - `pass`: works on any shard; the result has the same sharding.
 * - `reduce`: sums over it; over a sharded axis the result is unreduced.
 * - `replicated`: must be replicated.
 * - `local`: keeps its sharding, which the result does not depend on.
 * - mesh axes: must be sharded over exactly these; with `sum`, it is also summed over.
 */
export type Role =
  | "pass"
  | "reduce"
  | "replicated"
  | "local"
  | readonly string[]
  | { readonly sum: readonly string[] };

/** Facts about model and mesh for rules. */
export interface Known {
  /** Whether an axis is dynamic, globally or per rank. */
  isRagged(axis: string): boolean;
  /** The first of merged axes, or of the parts of a split one, that is longer than 1. The first one if none is. */
  outermost(axes: readonly string[]): string;
  /** Whether the elements of a dilated axis cover another axis, except for those between. */
  fills(params: PrimitiveParams["dilate"]): boolean;
  /** Mesh axes that an axis is placed over. */
  placedOver(axis: string): readonly string[];
  /** Mesh axes such that the tokens of one sequence are on one rank. Throws if there is no such placement. */
  sequenceOver(node: Node, by: Node, axis: string): readonly string[];
  /** Mesh axes of the items of a ragged axis that an input numbers. Undefined: unconstrained. */
  itemsOver(axis: string, ids: Node): readonly string[] | undefined;
  /** Whether the tokens of a routing group are on one rank. */
  isGroupTogether(axis: string, group: Node | undefined): boolean;
  /** Mesh axes of the tokens of a routing during expert computation. */
  tokensOver(route: Node, axis: string): readonly string[];
  /** Mesh axes of the experts of an axis during expert computation. */
  expertsOver(axis: string): readonly string[];
}

/** The sharding rule of a primitive. */
export interface Rule<P extends Primitive> {
  readonly role: (
    node: NodeOf<P>,
    at: { readonly operand: number; readonly axis: string },
    known: Known,
  ) => Role;
  /** Axes of the result whose sharding differs from that of the operands' axes of the same name. */
  readonly result?: (node: NodeOf<P>, over: Over, known: Known) => Over;
  /** Mesh axes along which ranks have terms of the result, besides those of summed axes. */
  readonly terms?: (node: NodeOf<P>, known: Known) => readonly string[];
  /** The operand with the cache sequence of each token. */
  readonly sequence?: number;
  /** The operand whose elements are only moved. It may be unreduced, and the result then is too. */
  readonly moves?: number;
  /** Whether the result is a term of the same sum if some operands are. The order of the sum may then change. */
  readonly linear: LinearRule<P>;
}

/** The role of an axis of a cache that is read or written by index: sequences may be sharded, other axes are local. */
export function ofCache(axis: string, known: Known): Role {
  const over = known.placedOver(axis);
  return over.length > 0 ? over : "local";
}

/** Primitives with one axis in the parameter `over`. */
type AlongAxis = {
  [P in Primitive]: PrimitiveParams[P] extends { readonly over: string } ? P
    : never;
}[Primitive];

/** An axis `over` that must be replicated; all others pass. */
export function replicatedOver<P extends AlongAxis>(): Rule<P> {
  const role: Rule<P>["role"] = ({ params: { over } }, { axis }) =>
    axis === over ? "replicated" : "pass";
  return { role, linear: LINEAR.never };
}
