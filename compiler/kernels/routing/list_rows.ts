/** Pre-summing with deduplicated dispatch: lists, for each token, the received rows of its choices. */

import { pick } from "../../../spec/kernel/pick.ts";
import type { Expr, Kernel } from "../kernel.ts";
import { bindings, elementwise, local, wgsl } from "../kernel.ts";
import { DROPPED } from "./assign.ts";

/** The rows of each deduplicated token. Its grid is `elementwiseGrid(tokens * k)`. */
export interface ListRowsOptions {
  readonly name: string;
  /** Experts splits[u] to splits[u + 1] belong to unit u: an owner or a chunk of it. */
  readonly splits: readonly number[];
  readonly k: number;
  readonly tokens: Expr;
  /** Maximum number of choices of a token for one unit. */
  readonly maxChoices: number;
}

const [U, UNIT] = [local("u", "u32"), local("unit", "u32")];

/** rows[tokenRow[t, j]] = the received rows of the choices of t, from j on, that go to the unit of j. */
export function listRows(o: ListRowsOptions): Kernel {
  const { k, maxChoices, splits } = o;
  const [starts, ends] = [splits.slice(0, -1), splits.slice(1)];
  const each = splits.at(-1)! + starts.length;
  return elementwise({
    name: o.name,
    count: wgsl`${o.tokens} * ${k}`,
    bindings: bindings({
      weight: "f32 [token, k]",
      sendRow: "u32 [token, k]",
      tokenRow: "u32 [token, k]",
      counts: "u32 [group rank, expert, then unit]",
      groupRank: "u32 [1]",
      // The received rows of its choices, DROPPED after the last, then the bits of their weights.
    }, { rows: "u32 [token row, 2 * maxChoices]" }),
    body: wgsl`
      let token_row = tokenRow[i];
      if (token_row != ${DROPPED}) {
        let me = groupRank[0];
        // The unit of this choice, and the rows from \`first\` to \`end\` (exclusive) that this rank sends to it.
        var unit = 0u;
        var first = 0u;
        var end = 0u;
        for (var u = 0u; u < ${starts.length}; u++) {
          if (end <= sendRow[i]) {
            unit = u;
            first = end;
            let stop = ${pick(ends, U)};
            for (var c = ${pick(starts, U)}; c < stop; c++) {
              end += counts[me * ${each} + c];
            }
          }
        }
        // They are received after those of earlier ranks.
        var earlier = 0u;
        let stop = ${pick(ends, UNIT)};
        for (var s = 0u; s < me; s++) {
          for (var c = ${pick(starts, UNIT)}; c < stop; c++) {
            earlier += counts[s * ${each} + c];
          }
        }
        let list = token_row * ${2 * maxChoices};
        var n = 0u;
        for (var j = i % ${k}; j < ${k}; j++) {
          let choice = i / ${k} * ${k} + j;
          let row = sendRow[choice];
          if (row >= first && row < end) {
            rows[list + n] = row - first + earlier;
            rows[list + ${maxChoices} + n] = bitcast<u32>(weight[choice]);
            n++;
          }
        }
        for (var m = n; m < ${maxChoices}; m++) {
          rows[list + m] = ${DROPPED};
          rows[list + ${maxChoices} + m] = 0;
        }
      }`,
  });
}
