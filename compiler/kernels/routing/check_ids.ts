/** Checks of a routing: sends the id of every choice with its row, there and back, and compares. */

import type { Expr, Kernel } from "../kernel.ts";
import { bindings, elementwise, kernelOf, wgsl } from "../kernel.ts";
import { DROPPED } from "./assign.ts";
import { sumOfLanes } from "../pieces/counting_sort.ts";

const LANES = 64;

const CHOICES = { sendRow: "u32 [token, k]", groupRank: "u32 [1]" } as const;

/** Ids: groupRank * maxChoices + index of the choice, unique in the group. */
export interface CheckIdsOptions {
  readonly k: number;
  readonly tokens: Expr;
  /** Maximum number of choices of a rank. */
  readonly maxChoices: number;
}

/** ids[sendRow[i]] = the id of choice i. Its grid is `elementwiseGrid(tokens * k)`. */
export function sendIds({ tokens, k, maxChoices }: CheckIdsOptions): Kernel {
  return elementwise({
    name: "send_ids",
    count: wgsl`${tokens} * ${k}`,
    bindings: bindings(CHOICES, { ids: "u32 [row]" }),
    body: wgsl`
      let row = sendRow[i];
      if (row != ${DROPPED}) { ids[row] = groupRank[0] * ${maxChoices} + i; }`,
  });
}

/** wrong[0] = the number of choices i whose id differs from ids[sendRow[i]]. One workgroup. */
export function compareIds({ tokens, k, maxChoices }: CheckIdsOptions): Kernel {
  return kernelOf({
    name: "compare_ids",
    workgroupSize: LANES,
    bindings: bindings({ ...CHOICES, ids: "u32 [row]" }, { wrong: "u32 [1]" }),
    body: wgsl`
      var<workgroup> of_lane: array<u32, ${LANES}>;
      var total = 0u;
      for (var i = lane; i < ${tokens} * ${k}; i += ${LANES}) {
        let row = sendRow[i];
        if (row != ${DROPPED}) {
          if (ids[row] != groupRank[0] * ${maxChoices} + i) { total++; }
        }
      }
      of_lane[lane] = total;
      workgroupBarrier();
      if (lane == 0) {
        ${sumOfLanes("all", "of_lane", LANES)}
        wrong[0] = all;
      }`,
  });
}
