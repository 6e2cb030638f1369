/**
 * The k largest of long rows, such as logits of a vocabulary: a workgroup for each row. Each lane knows the best of its own
 * part of the row; the best of these is taken, and only the lane that had it looks for its next.
 */

import { bindings, GROUP_XY, type Kernel, kernelOf, wgsl } from "./kernel.ts";
import type { TopKOptions } from "./top_k.ts";

const LANES = 64;

/** Rows of at least this length are worth a workgroup each. */
export const LONG_ROW = 256;

/** As `topK`, with the same bindings and results. Its grid is `rowsGrid(rows)`. */
export function topKOfLong({ name, rows, count, k }: TopKOptions): Kernel {
  return kernelOf({
    name,
    workgroupSize: LANES,
    bindings: bindings({ x: "f32" }, { values: "f32", indices: "i32" }),
    body: wgsl`
      var<workgroup> tops: array<f32, ${LANES}>;
      var<workgroup> places: array<u32, ${LANES}>;
      var<workgroup> taken: array<u32, 1>;

      let row = ${GROUP_XY};
      if (row < ${rows}) {
        let first = row * ${count};
        // Of this lane: the last value that was taken, and the best after it; index ${count} stands for none.
        var last = ${count}u;
        var last_value = 0.0;
        var own = ${count}u;
        var own_value = 0.0;
        var look = 1u;
        for (var j = 0u; j < ${k}; j++) {
          if (look == 1) {
            own = ${count};
            own_value = 0.0;
            for (var e = lane; e < ${count}; e += ${LANES}) {
              let candidate = x[first + e];
              if ((last == ${count} || (candidate < last_value || (candidate == last_value && e > last)))
                && (own == ${count} || candidate > own_value)) {
                own = e;
                own_value = candidate;
              }
            }
          }
          tops[lane] = own_value;
          places[lane] = own;
          workgroupBarrier();

          // The best that a lane has, the lowest index among equals.
          if (lane == 0) {
            var best = ${count}u;
            var best_value = 0.0;
            for (var l = 0u; l < ${LANES}; l++) {
              let top = tops[l];
              let place = places[l];
              if (place < ${count} && (best == ${count}
                || (top > best_value || (top == best_value && place < best)))) {
                best = place;
                best_value = top;
              }
            }
            taken[0] = best;
            let at = row * ${k} + j;
            values[at] = best_value;
            // Only values that are not numbers leave nothing to choose; the index stays legal.
            indices[at] = i32(min(best, ${count - 1}));
          }
          workgroupBarrier();

          look = 0;
          if (taken[0] == own) {
            last = own;
            last_value = own_value;
            look = 1;
          }
        }
      }`,
  });
}
