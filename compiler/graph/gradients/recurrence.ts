/**
 * The derivative of `linearRecurrence`, for runs in which every sequence starts. With G the cotangent of a state S, D
 * the state after the decay and r = Dᵀ key, the cotangent of d is Gᵀ key, and
 *
 *     query: S dy     key: G d - D dvalue ("delta"), G d ("add")     value: rate * dd     rate: dd · (value - r)
 *
 * Rows of S, D and G are recurrences with keys and values exchanged. The cotangent of the decay times the decay is A,
 * the sum of G · D over the elements that share the decay. No scan has both factors, but A is A of the next token plus
 *
 *     per head:        dy · y - dd · d - r · dvalue
 *     per key element: query (S dy) - key (G d + D dvalue) ("delta"), query (S dy) - key (G d) ("add")
 */

import { expr } from "../../../spec/kernel/text/resolve.ts";
import type { Cotangents, DerivativeInput } from "./derivatives.ts";
import type { Node } from "../graph.ts";

/** Cotangents by query, key, value, decay and rate. */
export function recurrenceDerivative(
  { node, dy, b }: DerivativeInput<"linearRecurrence">,
): Cotangents {
  const [, query, key, value, decay, rate, sequence, position] = node
    .inputs as [Node, Node, Node, Node, Node, Node, Node, Node];
  const { rule, token, head, kvHead, dim, valueDim } = node.params;
  const delta = rule === "delta";
  const perKey = decay.axes.length === 3;
  const ones = b.constant(1, decay);
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
  /** The product of rows of heads, and of their key heads. */
  const timesKeys = (x: Node, y: Node) => {
    if (kvHead === head) return times(x, y);
    const each = `${head}_each`;
    const parts = b.make("split", [x], { axis: head, into: [kvHead, each] });
    return b.make("merge", [times(parts, y)], {
      axes: [kvHead, each],
      to: head,
    });
  };

  // Of each head: S dy, G d without the products of keys and dvalue of this and later tokens, those, and D dvalue.
  const ofQuery = scan("add", [dy, d, key], { rows });
  const made = scan("add", [d, dy, query], { rows, reverse });
  const later = delta && scan("add", [d, dv, key], { rows, reverse });
  const earlier = delta && scan("add", [dv, d, key], { rows });

  /** The sum over the tokens from each token on, as many terms as there are `over`. */
  const fromHere = (terms: Node, over: string, o: { readonly rows?: true }) => {
    const like = o.rows ? value : key;
    const share = b.constant(1 / b.context.axes[over]!.size, like);
    return scan("add", [share, b.constant(1, like), terms], {
      ...o,
      reverse,
      by: ones,
    });
  };
  return [
    undefined,
    () => ofKeys(ofQuery),
    () => {
      if (!later || !earlier) return ofKeys(made);
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
      let total: Node;
      if (perKey) {
        const taken = later && earlier
          ? b.map((m, l, e) => expr`${m} - ${l} + ${e}`, made, later, earlier)
          : made;
        const terms = minus(timesKeys(ofQuery, query), timesKeys(taken, key));
        total = fromHere(terms, valueDim, { rows });
      } else {
        const change = minus(times(dy, node), times(dd, d));
        const terms = seen ? minus(change, times(seen, dv)) : change;
        const sums = fromHere(terms, dim, {});
        total = b.make("reduce", [sums], { kind: "sum", over: valueDim });
      }
      return b.map(
        (a, f) => expr`select(0.0, ${a} / ${f}, ${f} != 0.0)`,
        total,
        decay,
      );
    },
    () => along(dd, rest),
  ];
}
