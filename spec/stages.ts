/** Pipeline stages: contiguous ranges of layers. */

import { blockSizes } from "./mesh.ts";
import { sum } from "./sum.ts";

/** The first and the last layer of a stage, by their numbers from 0. */
export type StageRange = readonly [first: number, last: number];

/** Texts of stages: `cost`, or ranges such as `0-10,11-23`. */
export const STAGES_PATTERN = "^(cost|\\d+(-\\d+)?(,\\d+(-\\d+)?)*)$";

/** The text of the ranges of stages. */
export function stagesText(ranges: readonly StageRange[]): string {
  return ranges.map((range) => range.join("-")).join(",");
}

/**
 * The ranges of a number of stages. `given`: ranges, or `cost`, which minimizes the cost of the most expensive stage.
 * Undefined: equal numbers of layers, the first stages with one more. `costs`: the cost of each layer; that of the last
 * includes what follows it.
 */
export function stageRanges(
  stages: number,
  costs: readonly number[],
  given?: string,
): StageRange[] {
  if (given !== undefined && given !== "cost") {
    return given.split(",").map((range) => {
      const [first, last = first] = range.split("-").map(Number);
      return [first!, last!];
    });
  }
  let next = 0;
  const sizes = given === "cost" && stages <= costs.length
    ? balancedSizes(costs, stages)
    : blockSizes(costs.length, stages);
  return sizes.map((size) => [next, (next += size) - 1]);
}

/** Sizes of contiguous parts, none empty, whose largest sum is least, and then their squares. */
function balancedSizes(costs: readonly number[], parts: number): number[] {
  /** By the number of parts - 1 and the last item: the largest sum, the squares, and the size of the last part. */
  const tables: Split[][] = [];
  for (let part = 0; part < parts; part++) {
    tables.push(costs.map((_, i) => {
      let best: Split = { max: Infinity, squares: Infinity, size: i + 1 };
      for (let size = 1; size <= i + 1; size++) {
        const before = part === 0
          ? size === i + 1 ? NOTHING : undefined
          : tables[part - 1]![i - size];
        if (!before) continue;
        const last = sum(costs.slice(i - size + 1, i + 1));
        const max = Math.max(before.max, last);
        const squares = before.squares + last * last;
        const better = max < best.max ||
          max === best.max && squares < best.squares;
        if (better) best = { max, squares, size };
      }
      return best;
    }));
  }
  const sizes: number[] = [];
  for (let part = parts - 1, end = costs.length; part >= 0; part--) {
    const { size } = tables[part]![end - 1]!;
    sizes.unshift(size);
    end -= size;
  }
  return sizes;
}

/** The best split of the first items. */
interface Split {
  readonly max: number;
  readonly squares: number;
  readonly size: number;
}

const NOTHING: Split = { max: 0, squares: 0, size: 0 };
