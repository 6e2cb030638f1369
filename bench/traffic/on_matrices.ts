/** Counts statements on matrices of subgroups. */

import {
  MATRIX_SIZE,
  type OnMatrices,
  operandStrides,
  tileOfStatement,
} from "../../spec/kernel/matrices.ts";
import type { Stmt } from "../../spec/kernel/tree.ts";
import {
  elementsOfMatrix,
  firstElement,
  matricesOf,
  type SubgroupTile,
  type SubgroupTiles,
} from "../../spec/kernel/wgsl/matrices.ts";
import { range } from "../../spec/range.ts";
import type { LaneMeter, Lanes, Mask } from "./lanes.ts";
import { BANKS, instructionsOfProduct, loadPasses } from "./operands.ts";

/** A workgroup that executes a statement on matrices. */
interface OnSubgroups {
  readonly all: SubgroupTiles;
  readonly mask: Mask;
  readonly meter: LaneMeter;
  /** Arrays of workgroup memory by name. */
  readonly cells: ReadonlyMap<string, Lanes>;
  /** Executes statements for elements of results. */
  readonly block: (body: readonly Stmt[], mask: Mask) => void;
}

type OnSubgroupMatrices = Exclude<OnMatrices, { readonly op: "matrices" }>;

/** Counts a product, stores, scaling or results of matrices. */
export function countMatrices(s: OnSubgroupMatrices, on: OnSubgroups): void {
  const part = tileOfStatement(on.all.tiles, s)!;
  switch (s.op) {
    case "multiply":
      return multiply(s, part, on);
    case "storeMatrix":
      return store(part, on);
    case "scaleRows":
      return scaleRows(s, part, on);
    case "results":
      return results(s, part, on);
  }
}

function multiply(
  s: Extract<OnMatrices, { readonly op: "multiply" }>,
  part: SubgroupTile,
  { all: { size, subgroups }, mask, meter }: OnSubgroups,
): void {
  const { rows, columns } = part;
  const { length } = s.products;
  const depth = s.depth / MATRIX_SIZE;
  const loads = (rows + length * columns) * depth;
  const strides = operandStrides(s, part.width);
  const passes = rows * depth * loadPasses(strides.left) +
    length * columns * depth * loadPasses(strides.right);
  const products = rows * columns * length * depth;
  meter.barrier();
  meter.issue(mask, loads + products * instructionsOfProduct(size));
  meter.matrices({
    multiplyAdds: products * subgroups * MATRIX_SIZE ** 3,
    accesses: loads,
    passes: subgroups * passes,
  });
}

function store(
  { rows, columns }: SubgroupTile,
  { all, mask, meter }: OnSubgroups,
): void {
  const count = rows * columns;
  meter.issue(mask, count);
  const passes = count * passesOfAll(all);
  meter.matrices({ multiplyAdds: 0, accesses: count, passes });
}

/** Compares the factors of rows with 1. Stores, scales and loads matrices if one differs. */
function scaleRows(
  s: Extract<OnMatrices, { readonly op: "scaleRows" }>,
  part: SubgroupTile,
  { all, mask, meter, cells }: OnSubgroups,
): void {
  const { subgroups, size, turns } = all;
  for (const _ of range(3)) meter.barrier();
  // Each lane loads a factor and the findings of all subgroups, and one stores that of its subgroup.
  meter.issue(mask, 4 + 2 * subgroups);
  meter.matrices({ multiplyAdds: 0, accesses: 3, passes: 4 * subgroups });
  if (cells.get(s.factors)!.every((factor) => factor === 1)) return;
  const each = MATRIX_SIZE ** 2 / size;
  for (const _ of range(matricesOf(part).length * s.names.length)) {
    for (const _ of range(3 * turns)) meter.barrier();
    const accesses = 2 + 3 * each;
    meter.issue(mask, accesses + each + (turns === 1 ? 0 : 3 * turns));
    const passes = 5 * passesOfAll(all);
    meter.matrices({ multiplyAdds: 0, accesses, passes });
  }
}

function results(
  s: Extract<OnMatrices, { readonly op: "results" }>,
  part: SubgroupTile,
  { all, mask, meter, block }: OnSubgroups,
): void {
  const { size, turns } = all;
  block(firstElement(s, part), mask);
  for (const matrix of matricesOf(part)) {
    for (const _ of s.names) {
      for (const _ of range(2 * turns)) meter.barrier();
      const accesses = 1 + MATRIX_SIZE ** 2 / size;
      // A subgroup compares its turn before stores and before loads.
      meter.issue(mask, accesses + (turns === 1 ? 0 : 2 * turns));
      const passes = 2 * passesOfAll(all);
      meter.matrices({ multiplyAdds: 0, accesses, passes });
    }
    block(elementsOfMatrix(s, size, matrix), mask);
  }
}

/** Passes that load or store a matrix of each subgroup. */
function passesOfAll({ subgroups }: SubgroupTiles): number {
  return subgroups * MATRIX_SIZE ** 2 / BANKS;
}
