/**
 * Sums of products for few results on a wide device: teams of lanes sum different segments of the same results, so that
 * more loads are in flight. Segments are added as `reduce` adds them.
 */

import {
  ELEMENTWISE_LANES as LANES,
  INDEX,
} from "../../spec/kernel/elementwise.ts";
import { declareEach, registers } from "../../spec/kernel/registers.ts";
import type { Expr, Kernel, KernelText } from "./kernel.ts";
import { expr, GROUP_XY, kernelOf, local, wgsl } from "./kernel.ts";
import { blockedSum } from "./pieces/blocked_sum.ts";
import { sumTree } from "./pieces/sum_tree.ts";
import { productsAtOnce, type ReduceOptions } from "./reduce.ts";

/** Teams of a workgroup, each with a lane per result. */
export const REDUCE_TEAMS = 4;

/** Results of a team, and lanes of a workgroup. */
export const TEAM_RESULTS = LANES, TEAM_LANES = LANES * REDUCE_TEAMS;

const SEGMENT = local("segment", "u32");

/** Sums in more segments than one team has. */
export interface TeamReduceOptions extends ReduceOptions {
  readonly length: number;
  readonly segments: number;
}

/** Sums the products of every i. Its grid is `elementwiseGrid(count)`. */
export function reduceInTeams(o: TeamReduceOptions): Kernel {
  return kernelOf({
    name: o.name,
    workgroupSize: TEAM_LANES,
    bindings: o.bindings,
    body: teamSums(o, expr`${GROUP_XY} * ${LANES}`),
  });
}

/** Sums the products of result `i` of each lane of a team, from `first` on, in a workgroup of `TEAM_LANES`. */
export function teamSums(o: TeamReduceOptions, first: Expr): KernelText {
  const { segments } = o;
  const ofSegment = o.length / segments;
  const { terms, add } = productsAtOnce(o, {
    sum: "part",
    first: expr`${SEGMENT} * ${ofSegment}`,
  });
  const sums = registers("sum");
  const tree = sumTree(sums, segments);
  return wgsl`
      var<workgroup> segment_sums: array<f32, ${segments * LANES}>;
      let result = lane % ${LANES};
      let i = ${first} + result;
      if (i < ${o.count}) {
        for (var segment = lane / ${LANES}; segment < ${segments}; segment += ${REDUCE_TEAMS}) {
          ${blockedSum("part", { length: ofSegment, terms }, add)}
          segment_sums[segment * ${LANES} + result] = part;
        }
      }
      workgroupBarrier();
      if (lane < ${LANES} && i < ${o.count}) {
        ${declareEach(sums)}
        ${tree.declare}
        for (var segment = 0u; segment < ${segments}; segment++) {
          sum = segment_sums[segment * ${LANES} + result];
          ${tree.add(SEGMENT)}
        }
        ${o.epilogue(INDEX, local("sum", "f32"))}
      }`;
}
