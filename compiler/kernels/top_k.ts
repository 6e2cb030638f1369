/**
 * The k largest of rows, such as logits of a vocabulary, with one workgroup per row. Each lane has the best of its own
 * part of the row; the best of all lanes is selected, and only its lane searches the next one.
 */

import type { Expr, Kernel } from "./kernel.ts";
import { bindings, GROUP_XY, kernelOf, wgsl } from "./kernel.ts";
import { lanesOf } from "./rows.ts";

/** The k largest of each row. Its grid is `rowsGrid(rows)`. */
export interface TopKOptions {
  readonly name: string;
  readonly rows: Expr;
  readonly count: number;
  readonly k: number;
}

/** Values and indices of the k largest, by value descending, then index ascending. */
export function topK({ name, rows, count, k }: TopKOptions): Kernel {
  const lanes = lanesOf(count);
  return kernelOf({
    name,
    workgroupSize: lanes,
    bindings: bindings(
      { x: "f32 [row, count]" },
      { values: "f32 [row, k]", indices: "i32 [row, k]" },
    ),
    body: wgsl`
      var<workgroup> tops: array<f32, ${lanes}>;
      var<workgroup> top_indices: array<u32, ${lanes}>;
      var<workgroup> taken: array<u32, 1>;

      let row = ${GROUP_XY};
      if (row < ${rows}) {
        let first = row * ${count};
        // Of this lane: the last value that was taken, and the best after it; index ${count} stands for none.
        var last = ${count}u;
        var last_value = 0.0;
        var lane_best = ${count}u;
        var lane_value = 0.0;
        var look = 1u;
        for (var j = 0u; j < ${k}; j++) {
          if (look == 1) {
            lane_best = ${count};
            lane_value = 0.0;
            for (var e = lane; e < ${count}; e += ${lanes}) {
              let candidate = x[first + e];
              if ((last == ${count} || (candidate < last_value || (candidate == last_value && e > last)))
                && (lane_best == ${count} || candidate > lane_value)) {
                lane_best = e;
                lane_value = candidate;
              }
            }
          }
          tops[lane] = lane_value;
          top_indices[lane] = lane_best;
          workgroupBarrier();

          // The best of the lanes, the lowest index among equals.
          if (lane == 0) {
            var best = ${count}u;
            var best_value = 0.0;
            for (var l = 0u; l < ${lanes}; l++) {
              let top = tops[l];
              let top_index = top_indices[l];
              if (top_index < ${count} && (best == ${count}
                || (top > best_value || (top == best_value && top_index < best)))) {
                best = top_index;
                best_value = top;
              }
            }
            taken[0] = best;
            let at = row * ${k} + j;
            values[at] = best_value;
            // Only NaN values leave nothing to choose; the index stays in bounds.
            indices[at] = i32(min(best, ${count - 1}));
          }
          workgroupBarrier();

          look = 0;
          if (taken[0] == lane_best) {
            last = lane_best;
            last_value = lane_value;
            look = 1;
          }
        }
      }`,
  });
}
