/** The blocks of keys that tokens attend to, by the scores of an indexer. */

import { ModelError } from "../../../spec/errors.ts";
import { MAX_AXIS } from "../../../spec/limits.ts";
import { operands } from "../evaluate/rows.ts";
import { rounding, type Value, zeros } from "../evaluate/value.ts";
import { LINEAR } from "../gradients/linear.ts";
import { operand } from "../operands.ts";
import { ofCache } from "../sharding_rule.ts";
import { bind, fixed } from "../size_of.ts";
import type { Definition } from "./definition.ts";
import { blocked, checkOperands, putBest } from "./select_keys.ts";

/**
 * query [token, head, dim], keys [sequence, context, dim] after writing, sequence and position [token] -> i32 [token,
 * head, axis]: k blocks of positions up to that of the token, ascending, and -1 after them. These are the `first`
 * blocks, the `local` last ones, and those with the largest query · key, of equal ones the first. Of `paginate`: keys
 * begin with [page, within], and a table [sequence, block] is last.
 */
export const selectBlocks: Definition<"selectBlocks"> = {
  fusion: "kernel",
  mixes: "no",

  type({ inputs, params: { token, head, dim, context, axis } }) {
    const [query, keys, sequence, position] = [0, 1, 2, 3].map((i) =>
      operand(inputs, i)
    );
    checkOperands("select blocks", {
      floats: [["query", query!, [token, head, dim]]],
      integers: [
        ["sequence", sequence!, [token]],
        ["position", position!, [token]],
      ],
      keys: [keys!, context, dim],
    });
    return { axes: [token, head, axis], dtype: "i32" };
  },

  sizes(node, sizes) {
    const { dim, head, context, k, block, first, local, axis } = node.params;
    for (const each of [dim, head, context]) {
      fixed(sizes, node, each, "select blocks by");
    }
    const from = (
      start: number,
      names: { readonly [name: string]: number },
    ) => {
      for (const [name, n] of Object.entries(names)) {
        if (Number.isInteger(n) && start <= n && n <= MAX_AXIS) continue;
        throw new ModelError(
          `Cannot select blocks with ${name} ${n}: expected a whole number from ${start} to ${MAX_AXIS}`,
          node.span,
        );
      }
    };
    from(1, { k, block });
    from(0, { first, local });
    if (first + local > k) {
      throw new ModelError(
        `Cannot select ${k} blocks: ${first} first and ${local} local ones are always selected. Select at least ${
          first + local
        }`,
        node.span,
      );
    }
    bind(sizes, node, axis, k);
  },

  reference(node, context) {
    const [query, keys, sequence, position] = operands(node, context) as [
      Value,
      Value,
      Value,
      Value,
    ];
    const { k, block: size, first, local } = node.params;
    const [tokens, heads, dim] = query.shape as [number, number, number];
    const positions = keys.shape[1]!;
    const round = rounding(keys);
    const y = zeros(node.axes, [tokens, heads, k], node.dtype);
    for (let row = 0; row < tokens * heads; row++) {
      const t = Math.floor(row / heads);
      const end = Math.min(position.data[t]! + 1, positions);
      const product = (c: number) => {
        const key = (sequence.data[t]! * positions + c) * dim;
        return blocked(dim, round, (d, sum) => {
          const q = query.data[row * dim + d]!;
          return round(round(q * keys.data[key + d]!) + sum);
        });
      };
      const blocks = Math.ceil(end / size);
      const scores = Array.from({ length: blocks }, (_, b) => {
        if (b < first || blocks - b <= local) return Infinity;
        let best = -Infinity;
        for (let c = b * size; c < Math.min((b + 1) * size, end); c++) {
          best = Math.max(best, product(c));
        }
        return best;
      });
      putBest(y, row, { scores, k });
    }
    return y;
  },

  // A choice has no derivative.
  derivative: () => [],

  sharding: {
    role(node, { operand, axis }, known) {
      const { token, head } = node.params;
      if (axis === token) {
        return known.sequenceOver(node, node.inputs[2]!, axis);
      }
      if (axis === head) return known.placedOver(axis);
      return operand === 1 ? ofCache(axis, known) : "replicated";
    },
    sequence: 2,
    linear: LINEAR.never,
  },
};
