/**
 * The derivative of `linearRecurrence`, for runs in which every sequence starts. With G the cotangent of a state S, D
 * the state after the decay and r = Dᵀ key, the cotangent of d is Gᵀ key, and
 *
 *     query: S dy     key: G d - D dvalue ("delta"), G d ("add")     value: rate * dd     rate: dd · (value - r)
 *
 * Rows of S, D and G are recurrences with keys and values exchanged. The cotangent of the decay times the decay is A =
 * G · D. No scan has both factors, but A is A of the next token plus dy · y - dd · d - r · dvalue.
 */

import { expr } from "../../spec/kernel/resolve.ts";
import { ModelError } from "../../spec/errors.ts";
import type { Cotangents, DerivativeInput } from "./derivatives.ts";
import type { Node } from "./graph.ts";

/** Cotangents by query, key, value, decay and rate. */
export function recurrenceDerivative(
  { node, dy, b }: DerivativeInput<"linearRecurrence">,
): Cotangents {
  const [, query, key, value, decay, rate, sequence, position] = node
    .inputs as [Node, Node, Node, Node, Node, Node, Node, Node];
  const { rule, token, head, kvHead, dim, valueDim } = node.params;
  const delta = rule === "delta";
  if (decay.axes.length === 3) {
    throw new ModelError(
      "Cannot differentiate linearRecurrence by a decay of each key element: only one of each head is built",
      node.span,
    );
  }
  const ones = b.constant(1, rate);
  const scan = (
    rule: "add" | "seen" | "erase",
    [q, k, v]: readonly [Node, Node, Node],
    o: { readonly rows?: true; readonly reverse?: true; readonly by?: Node } =
      {},
  ): Node =>
    b.make("linearScan", [
      ...[q, k, v, o.by ?? decay],
      ...[rate, sequence, position],
    ], {
      rule,
      token,
      head,
      dim: o.rows ? valueDim : dim,
      valueDim: o.rows ? dim : valueDim,
      ...o.reverse ? { reverse: true as const } : {},
    });
  const reverse = true as const, rows = true as const;
  const times = (x: Node, y: Node) => b.map((x, y) => expr`${x} * ${y}`, x, y);
  const minus = (x: Node, y: Node) => b.map((x, y) => expr`${x} - ${y}`, x, y);
  const along = (x: Node, y: Node) =>
    b.make("reduce", [times(x, y)], { kind: "sum", over: valueDim });

  const seen = delta ? scan("seen", [query, key, value]) : undefined;
  const rest = seen ? minus(value, seen) : value;
  const d = times(rest, rate);
  // Without a value to erase, "erase" is a sum.
  const dd = delta
    ? scan("erase", [query, key, dy], { reverse })
    : scan("add", [key, query, dy], { reverse });
  const dv = times(dd, rate);

  /** Sums over the heads that share a key head. */
  const ofKeys = (x: Node) => {
    if (kvHead === head) return x;
    if (b.context.axes[kvHead]!.size === 1) {
      const sum = b.make("reduce", [x], { kind: "sum", over: head });
      // Repeats along an axis of one item: a key, or one number per item.
      const like = x.axes.length === key.axes.length
        ? key
        : b.make("reduce", [key], { kind: "sum", over: dim });
      return b.broadcast(sum, like);
    }
    const each = `${head}_each`;
    const parts = b.make("split", [x], { axis: head, into: [kvHead, each] });
    return b.make("reduce", [parts], { kind: "sum", over: each });
  };
  return [
    undefined,
    () => ofKeys(scan("add", [dy, d, key], { rows })),
    () => {
      const made = scan("add", [d, dy, query], { rows, reverse });
      if (!delta) return ofKeys(made);
      const later = scan("add", [d, dv, key], { rows, reverse });
      const earlier = scan("add", [dv, d, key], { rows });
      const current = ofKeys(along(d, dv));
      const sum = ofKeys(minus(minus(made, later), earlier));
      return b.map(
        (s, k, o) => expr`fma(${k}, ${o} * 2.0, ${s})`,
        sum,
        key,
        current,
      );
    },
    () => dv,
    () => {
      const change = minus(times(dy, node), times(dd, d));
      const parts = seen ? minus(change, times(seen, dv)) : change;
      // The sum over the tokens from each token on.
      const one = b.constant(1, key);
      const share = b.constant(1 / b.context.axes[dim]!.size, key);
      const sums = scan("add", [share, one, parts], {
        reverse,
        by: ones,
      });
      const total = b.make("reduce", [sums], { kind: "sum", over: valueDim });
      return b.map(
        (a, f) => expr`select(0.0, ${a} / ${f}, ${f} != 0.0)`,
        total,
        decay,
      );
    },
    () => along(dd, rest),
  ];
}
