/** A concatenation that is computed by the kernel of one of its parts. */

import { add, f32, lt, sub, u32 } from "../../../spec/kernel/build.ts";
import type { Expr } from "../../../spec/kernel/tree.ts";
import type { Node, NodeOf } from "../../graph/graph.ts";
import { computeValue } from "./emit.ts";
import { type At, atWith } from "./indices.ts";
import type { KernelScope } from "./scope.ts";

/** A part of a concatenation along its last axis. */
export interface JoinedPart {
  /** Its first index along the last axis, its length, and the length of all other parts. */
  readonly first: number;
  readonly length: number;
  readonly others: number;
  /** Whether the part contains an index of the concatenation. */
  contains(at: At): Expr;
  /** The index in the part. */
  within(at: At): At;
  /** The index in the concatenation of one in the part. */
  around(at: At): At;
  /** The value of another part. */
  outside(at: At): Expr;
}

/** The part of a concatenation that a node computes. */
export function joinedPart(
  scope: KernelScope,
  joined: NodeOf<"concat">,
  node: Node,
): JoinedPart {
  const { axes, to } = joined.params;
  const nth = joined.inputs.indexOf(node);
  const { placed } = scope.lowering;
  const ends = axes.map((_, i) =>
    axes.slice(0, i + 1).reduce((n, axis) => n + placed.axes[axis]!.size, 0)
  );
  const [first, end] = [ends[nth - 1] ?? 0, ends[nth]!];
  const fromFirst = (at: At) =>
    first === 0 ? at.get(to) : sub(at.get(to), u32(first));
  return {
    first,
    length: end - first,
    others: ends.at(-1)! - (end - first),
    // Before the first index, the difference of unsigned numbers is large.
    contains: (at) => lt(fromFirst(at), u32(end - first)),
    within: (at) => atWith(at, axes[nth]!, () => fromFirst(at)),
    around: (at) => atWith(at, to, () => add(at.get(axes[nth]!), u32(first))),
    outside: (at) => computeValue(scope, joined, at, new Map([[node, f32(0)]])),
  };
}
