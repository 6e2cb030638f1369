/**
 * Sums of products for few results on a wide device: teams of lanes sum different segments of the same results, so that
 * more loads are in flight. Segments are added as `reduce` adds them.
 */

import {
  ELEMENTWISE_LANES as LANES,
  INDEX,
} from "../../spec/kernel/elementwise.ts";
import { declareEach, registers } from "../../spec/kernel/registers.ts";
import type { Kernel } from "./kernel.ts";
import { expr, GROUP_XY, kernelOf, local, wgsl } from "./kernel.ts";
import { blockedSum } from "./pieces/blocked_sum.ts";
import { sumTree } from "./pieces/sum_tree.ts";
import { productsAtOnce, type ReduceOptions } from "./reduce.ts";

/** Teams of a workgroup, each with a lane per result. */
export const REDUCE_TEAMS = 4;

const SEGMENT = local("segment", "u32");

/** Sums in more segments than one team has. */
export interface TeamReduceOptions extends ReduceOptions {
  readonly length: number;
  readonly segments: number;
}

/** Sums the products of every i. Its grid is `elementwiseGrid(count)`. */
export function reduceInTeams(o: TeamReduceOptions): Kernel {
  const { segments } = o;
  const ofSegment = o.length / segments;
  const { terms, add } = productsAtOnce(o, {
    sum: "part",
    first: expr`${SEGMENT} * ${ofSegment}`,
  });
  const sums = registers("sum");
  const tree = sumTree(sums, segments);
  return kernelOf({
    name: o.name,
    workgroupSize: LANES * REDUCE_TEAMS,
    bindings: o.bindings,
    body: wgsl`
      var<workgroup> segment_sums: array<f32, ${segments * LANES}>;
      let result = lane % ${LANES};
      let i = ${GROUP_XY} * ${LANES} + result;
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
      }`,
  });
}
