/**
 * Merges blocks of keys and multiplies the values of each head by its matrix, as latent attention does: a workgroup
 * merges the values of one head of one token and computes some columns of the product.
 */

import { invariant } from "../../../spec/errors.ts";
import { shared } from "../../../spec/kernel/build.ts";
import { mergeLanes } from "../../tuning/queries.ts";
import type { Binding, Expr, Kernel, Stmt } from "../kernel.ts";
import { expr, kernelOf, wgsl } from "../kernel.ts";
import { TEAM_LANES, TEAM_RESULTS, teamSums } from "../reduce_teams.ts";
import { u } from "../matmul/left.ts";
import type { AttentionOptions } from "./block.ts";
import { mergedBlocks, mergeOperands } from "./split.ts";

/** The token and the head of a workgroup. */
export const [MERGED_TOKEN, MERGED_HEAD] = ["token", "head"].map(u) as [
  Expr,
  Expr,
];

/** The product of the values of each head with its matrix. */
export interface MergeContractOptions {
  readonly name: string;
  readonly attention: AttentionOptions;
  /** Columns of the product, and segments of its sums. */
  readonly columns: number;
  readonly segments: number;
  /** Bindings besides those of the merge. */
  readonly bindings: readonly Binding[];
  /** Terms that are loaded before the first is added. Default: 1. */
  readonly atOnce?: number | undefined;
  /** Element `k` of a column of the matrix of the head. */
  right(column: Expr, k: Expr): Expr;
  /** Consumes the product of a column. */
  epilogue(column: Expr, value: Expr): readonly Stmt[];
}

/** Whether the lanes that merge values of this width are those of the product. */
export function canMergeContract({ valueDim, dim }: AttentionOptions): boolean {
  return mergeLanes(valueDim ?? dim) === TEAM_LANES;
}

/** Workgroups of a head of a token, along z. */
export function mergeContractGroups(
  { columns }: Pick<MergeContractOptions, "columns">,
): number {
  return Math.ceil(columns / TEAM_RESULTS);
}

/** Its grid is heads, tokens and `mergeContractGroups`. */
export function mergeContract(o: MergeContractOptions): Kernel {
  const { attention, columns, segments, atOnce } = o;
  const { valueDim: length = attention.dim } = attention;
  invariant(canMergeContract(attention), "both parts have the same lanes");
  const known = new Set(o.bindings.map(({ name }) => name));
  const sums = teamSums({
    name: o.name,
    kind: "sum",
    bindings: o.bindings,
    count: expr`select(0u, ${columns}, ${MERGED_TOKEN} < ${attention.tokens})`,
    length,
    segments,
    atOnce,
    terms: (column, k) => [shared("merged", k), o.right(column, k)],
    epilogue: o.epilogue,
  }, expr`group.z * ${TEAM_RESULTS}`);
  return kernelOf({
    name: o.name,
    workgroupSize: TEAM_LANES,
    bindings: [
      ...o.bindings,
      ...mergeOperands(attention).filter(({ name }) => !known.has(name)),
    ],
    body: wgsl`
      var<workgroup> merged: array<f32, ${length}>;
      ${
      mergedBlocks(attention, {
        store: (dimension) => wgsl`merged[${dimension}] = value_sum[c] / sum;`,
      })
    }
      workgroupBarrier();
      ${sums}`,
  });
}
