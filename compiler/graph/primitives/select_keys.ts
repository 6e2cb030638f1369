/** The keys of a cache that tokens attend to, by the scores of an indexer. */

import { ModelError } from "../../../spec/errors.ts";
import { MAX_AXIS } from "../../../spec/limits.ts";
import { EXACT } from "../../../spec/numerics.ts";
import { operands } from "../evaluate/rows.ts";
import { LINEAR } from "../gradients/linear.ts";
import { fail, operand, sameAxes, wantType } from "../operands.ts";
import { ofCache } from "../sharding_rule.ts";
import { bind, fixed } from "../size_of.ts";
import { put, rounding, type Value, zeros } from "../evaluate/value.ts";
import type { Node } from "../graph.ts";
import type { Definition } from "./definition.ts";

/**
 * query [token, head, dim], weights [token, head], keys [sequence, context, dim] after writing, sequence and last
 * [token]
 * -> i32 [token, axis]: the positions up to `last` with the k largest sums over heads of weight * relu(query · key),
 * ascending, of equal ones the first, and -1 after them. Of `paginate`: keys begin with [page, within], and a table
 * [sequence, block] is last.
 */
export const selectKeys: Definition<"selectKeys"> = {
  fusion: "kernel",
  mixes: "no",

  type({ inputs, params: { token, head, dim, context, axis } }) {
    const [query, weights, keys, sequence, last] = [0, 1, 2, 3, 4].map((i) =>
      operand(inputs, i)
    );
    checkOperands("select keys", {
      floats: [
        ["query", query!, [token, head, dim]],
        ["weights", weights!, [token, head]],
      ],
      integers: [
        ["sequence", sequence!, [token]],
        ["last position", last!, [token]],
      ],
      keys: [keys!, context, dim],
    });
    return { axes: [token, axis], dtype: "i32" };
  },

  sizes(node, sizes) {
    const { dim, head, context, k, axis } = node.params;
    for (const each of [dim, head, context]) {
      fixed(sizes, node, each, "select keys by");
    }
    if (!Number.isInteger(k) || k < 1 || k > MAX_AXIS) {
      throw new ModelError(
        `Cannot select ${k} keys: expected a whole number from 1 to ${MAX_AXIS}`,
        node.span,
      );
    }
    bind(sizes, node, axis, k);
  },

  reference(node, context) {
    const [query, weights, keys, sequence, last] = operands(node, context) as [
      Value,
      Value,
      Value,
      Value,
      Value,
    ];
    const { k } = node.params;
    const [tokens, heads, dim] = query.shape as [number, number, number];
    const positions = keys.shape[1]!;
    const round = rounding(keys);
    const y = zeros(node.axes, [tokens, k], node.dtype);
    for (let t = 0; t < tokens; t++) {
      const scores = Array.from(
        { length: Math.min(last.data[t]! + 1, positions) },
        (_, c) => {
          const key = (sequence.data[t]! * positions + c) * dim;
          return blocked(heads, round, (h, sum) => {
            const head = t * heads + h;
            const dot = blocked(dim, round, (d, sum) => {
              const q = query.data[head * dim + d]!;
              return round(round(q * keys.data[key + d]!) + sum);
            });
            const weighted = weights.data[head]! * Math.max(dot, 0);
            return round(round(weighted) + sum);
          });
        },
      );
      putBest(y, t, { scores, k });
    }
    return y;
  },

  // A choice has no derivative.
  derivative: () => [],

  sharding: {
    role(node, { operand, axis }, known) {
      if (axis === node.params.token) {
        return known.sequenceOver(node, node.inputs[3]!, axis);
      }
      return operand === 2 ? ofCache(axis, known) : "replicated";
    },
    sequence: 3,
    linear: LINEAR.never,
  },
};

/** An operand, its name and its axes. */
type Wanted = readonly [name: string, x: Node, axes: readonly string[]];

/** Checks axes and dtypes of the operands of an indexer. Throws RuleError. */
export function checkOperands(
  what: string,
  { floats, integers, keys: [keys, context, dim] }: {
    readonly floats: readonly Wanted[];
    readonly integers: readonly Wanted[];
    readonly keys: readonly [keys: Node, context: string, dim: string];
  },
): void {
  for (const [name, { axes }, expected] of [...floats, ...integers]) {
    if (sameAxes(axes, expected)) continue;
    fail(
      `Cannot ${what}: the ${name} is '${axes.join(" ")}', expected '${
        expected.join(" ")
      }'`,
    );
  }
  if (!sameAxes(keys.axes.slice(1), [context, dim])) {
    fail(
      `Cannot ${what} of cache '${
        keys.axes.join(" ")
      }': expected 'sequence context ${dim}'`,
    );
  }
  wantType(what, keys, "f32");
  for (const [, x] of floats) wantType(what, x, "f32");
  for (const [, x] of integers) wantType(what, x, "i32");
}

/**
 * Sets row `row` of `y` to the indices of the `k` largest scores, ascending, and -1 after them. Of equal ones the
 * first.
 */
export function putBest(
  y: Value,
  row: number,
  { scores, k }: { readonly scores: readonly number[]; readonly k: number },
): void {
  const best = scores.map((_, i) => i)
    .sort((a, b) => scores[b]! - scores[a]! || a - b)
    .slice(0, k).sort((a, b) => a - b);
  for (let j = 0; j < k; j++) put(y, row * k + j, best[j] ?? -1);
}

/** A sum in the blocks of the numeric contract. */
export function blocked(
  length: number,
  round: (x: number) => number,
  step: (i: number, sum: number) => number,
): number {
  let total = 0;
  for (let start = 0; start < length; start += EXACT.block) {
    let block = 0;
    for (let i = start; i < Math.min(start + EXACT.block, length); i++) {
      block = step(i, block);
    }
    total = round(total + block);
  }
  return total;
}
