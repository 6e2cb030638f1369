/**
 * The k largest of rows, such as logits of a vocabulary. With one workgroup per row, each lane has the best of its own
 * part of the row; the best of all lanes is selected, and only its lane searches the next one. For wide devices,
 * workgroups sort parts of a row, and further launches the best of these parts (Batcher, "Sorting networks and their
 * applications", 1968). The best one needs no sort. The order is total, so that the result does not depend on the
 * parts.
 */

import type { Size } from "../../spec/size.ts";
import type { Expr, Grid, Kernel, KernelText } from "./kernel.ts";
import {
  bindings,
  foldGrid,
  GROUP_XY,
  GROUP_YZ,
  kernelOf,
  SHARED_WORDS,
  wgsl,
} from "./kernel.ts";
import { orderKey } from "./pieces/order_key.ts";
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

/** Elements that a workgroup sorts: a key and a location each. */
const SORTED = SHARED_WORDS / 2, LANES = 256;

/** Lanes that compare the best elements of all lanes, before one lane compares theirs. */
const FINALISTS = 16;

/** Maximum k of `topKPart`: two parts have fewer than half as many candidates as elements. */
export const MAX_SORTED_K = SORTED / 4;

/** A launch that replaces the elements of rows by the best of their parts. */
export interface TopKPartOptions extends TopKOptions {
  /** Elements are candidates of an earlier launch with indices, in parts that are in order. Default: false. */
  readonly indexed?: boolean;
}

/** The parts of rows of `count` elements. */
export function topKParts(count: number): number {
  return Math.ceil(count / SORTED);
}

/** A workgroup for each part of each row. */
export function topKGrid(count: number, rows: Size): Grid {
  return [topKParts(count), ...foldGrid(rows)];
}

/**
 * Values and indices of the k largest of each part, ordered as by `topK`. Each part has at least k elements. With one
 * part: the k largest of each row.
 */
export function topKPart(o: TopKPartOptions): Kernel {
  const { count, k, indexed = false } = o;
  const parts = topKParts(count);
  const each = Math.floor(count / parts);
  const longer = count % parts;
  const most = each + Math.min(1, longer);
  const { lanes, words, order } = k === 1 ? largestFirst(most) : sorted(most);
  return kernelOf({
    name: o.name,
    workgroupSize: lanes,
    bindings: bindings(
      {
        x: "f32 [row, count]",
        ...indexed ? { candidates: "i32 [row, count]" } : {},
      },
      { values: "f32 [row, part, k]", indices: "i32 [row, part, k]" },
    ),
    body: wgsl`
      // Keys that order elements, and locations of elements in the part.
      var<workgroup> keys: array<u32, ${words}>;
      var<workgroup> locations: array<u32, ${words}>;

      let row = ${GROUP_YZ};
      if (row < ${o.rows}) {
        let start = group.x * ${each} + min(group.x, ${longer});
        let length = ${each}u + select(0u, 1, group.x < ${longer});
        let first = row * ${count} + start;
        ${order}
        let at = (row * ${parts} + group.x) * ${k};
        for (var j = lane; j < ${k}; j += ${lanes}) {
          let location = min(locations[j], length - 1);
          values[at + j] = x[first + location];
          indices[at + j] = ${
      indexed ? wgsl`candidates[first + location]` : wgsl`i32(start + location)`
    };
        }
      }`,
  });
}

/** Statements that order the elements of a part. */
interface Ordering {
  readonly lanes: number;
  /** Elements of `keys` and `locations`. */
  readonly words: number;
  /** Sets the first of `locations`, as many as are wanted, from the `length` elements of x from `first` on. */
  readonly order: KernelText;
}

/** Sorts up to `most` elements: a bitonic network. */
function sorted(most: number): Ordering {
  const levels = Math.max(1, Math.ceil(Math.log2(most)));
  const size = 2 ** levels;
  const lanes = Math.min(LANES, size / 2);
  const order = wgsl`
        for (var e = lane; e < ${size}; e += ${lanes}) {
          // After all elements.
          var key = 0xffffffffu;
          if (e < length) {
            let value = x[first + e];
            key = ${orderKey("value")} ^ 0xffffffff;
          }
          keys[e] = key;
          locations[e] = e;
        }
        workgroupBarrier();
        for (var level = 0u; level < ${levels}; level++) {
          for (var turn = 0u; turn < level + 1; turn++) {
            let apart = 1u << (level - turn);
            for (var pair = lane; pair < ${size / 2}; pair += ${lanes}) {
              let low = pair / apart * apart * 2 + pair % apart;
              let high = low + apart;
              let key = keys[low];
              let other = keys[high];
              let location = locations[low];
              let other_location = locations[high];
              let sorted = key < other || (key == other && location < other_location);
              if (sorted == (((low >> level) & 2) != 0)) {
                keys[low] = other;
                keys[high] = key;
                locations[low] = other_location;
                locations[high] = location;
              }
            }
            workgroupBarrier();
          }
        }`;
  return { lanes, words: size, order };
}

/**
 * The first of up to `most` elements: the best of each lane's elements, then of every 16th lane's, then of these. Lanes
 * after the end read the last element again, at a higher location.
 */
function largestFirst(most: number): Ordering {
  const lanes = Math.min(LANES, 2 ** Math.ceil(Math.log2(most)));
  const each = Math.ceil(most / lanes);
  const teams = Math.min(FINALISTS, lanes);
  const order = wgsl`
        @unroll (n < ${each}) { let value[n] = x[first + min(lane + n * ${lanes}, length - 1)]; }
        @unroll (n < ${each}) { let own_key[n] = ${orderKey("value[n]")}; }
        var top = own_key[0];
        var top_at = lane;
        @unroll (n < ${each}) {
          if (own_key[n] > top) {
            top = own_key[n];
            top_at = lane + n * ${lanes};
          }
        }
        keys[lane] = top;
        locations[lane] = top_at;
        ${bestOf(lanes, teams)}
        ${bestOf(teams, 1)}`;
  return { lanes, words: lanes, order };
}

/** Reduces `count` keys and locations to those of `teams` lanes: the largest key, the lowest location among equals. */
function bestOf(count: number, teams: number): KernelText {
  const each = count / teams;
  return wgsl`
        workgroupBarrier();
        if (lane < ${teams}) {
          @unroll (n < ${each}) { let team_key[n] = keys[lane + n * ${teams}]; }
          @unroll (n < ${each}) { let team_location[n] = locations[lane + n * ${teams}]; }
          var best = team_key[0];
          var best_at = team_location[0];
          @unroll (n < ${each}) {
            if (team_key[n] > best || (team_key[n] == best && team_location[n] < best_at)) {
              best = team_key[n];
              best_at = team_location[n];
            }
          }
          keys[lane] = best;
          locations[lane] = best_at;
        }`;
}
