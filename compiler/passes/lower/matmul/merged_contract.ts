/**
 * Contractions of the values of each head that also merge its blocks of keys, as in latent attention: a launch costs
 * more than merging a head in each workgroup that reads it.
 */

import type { Size } from "../../../../spec/size.ts";
import type { Node, NodeOf } from "../../../graph/graph.ts";
import { usersOf } from "../../../graph/users.ts";
import {
  canMergeContract,
  mergeContract,
  mergeContractGroups,
  MERGED_HEAD,
  MERGED_TOKEN,
} from "../../../kernels/attention/merge_contract.ts";
import { WORDS_AT_ONCE } from "../../../tuning/queries.ts";
import { sharedBytes } from "../../limits.ts";
import { fixedProduct, LENGTHS, type Lowering } from "../context.ts";
import { emitValue } from "../emit.ts";
import { writeTarget } from "../epilogue.ts";
import { atFlat, atJoined } from "../indices.ts";
import type { Storage } from "../lowering.ts";
import { KernelScope } from "../scope.ts";
import { changeWriters } from "../writers.ts";
import { dotShape } from "./dot_shape.ts";

/** Numbers of tokens of which a launch merges blocks: all, or up to some. */
export interface MergedTokens {
  readonly tokens: Size;
  /** Undefined: there are never more. */
  readonly upTo: number | undefined;
}

/**
 * Launches a contraction in place of the merge of its left operand. Undefined if others read the operand too, or if no
 * such kernel is possible.
 */
export function launchMerged(
  lowering: Lowering,
  node: NodeOf<"dot">,
  { storage, segments }: {
    readonly storage: Storage;
    readonly segments: number;
  },
): MergedTokens | undefined {
  const { model: { graph }, values, draft, options } = lowering;
  const [left, right] = node.inputs as [Node, Node];
  const merge = values.merges.get(left);
  if (!merge || left.primitive !== "attention") return undefined;
  const { token, head, valueDim } = left.params;
  const { batch, over, rows, columns } = dotShape(node);
  const isNamed = [graph.outputs, graph.states].some((named) =>
    Object.values(named).includes(left)
  );
  const fits = !isNamed && usersOf(graph).get(left)!.length === 1 &&
    batch.join() === head && over.join() === valueDim &&
    rows.join() === token && columns.length > 0 &&
    canMergeContract(merge.options);
  if (!fits) return undefined;
  const scope = new KernelScope(lowering);
  scope.readAs("lengths", LENGTHS);
  for (const [name, buffer] of Object.entries(merge.bindings)) {
    scope.readAs(name, buffer);
  }
  const width = fixedProduct(lowering, node, columns);
  const outer = {
    get: (axis: string) => axis === head ? MERGED_HEAD : MERGED_TOKEN,
  };
  const kernel = mergeContract({
    name: `merge_contract_${over.join("_")}`,
    attention: merge.options,
    columns: width,
    segments,
    bindings: scope.bindings,
    atOnce: WORDS_AT_ONCE,
    right: (column, k) => {
      const at = atJoined(columns, atFlat(scope, columns, column), outer);
      return emitValue(
        scope,
        right,
        atJoined(over, atFlat(scope, over, k), at),
      );
    },
    epilogue: (column, value) => {
      const at = atJoined(columns, atFlat(scope, columns, column), outer);
      return writeTarget({ scope, node, storage }, at, [value]);
    },
  });
  if (
    kernel.bindings.length > options.maxBindings ||
    sharedBytes(kernel) > options.maxShared
  ) return undefined;
  draft.steps.splice(draft.steps.lastIndexOf(merge.launch), 1);
  const { buffer } = values.storages.get(left)!;
  if (merge.upTo === undefined) draft.buffers.delete(buffer);
  else changeWriters(lowering, [buffer], -1);
  scope.launch(node, kernel, [
    merge.options.heads,
    merge.few,
    mergeContractGroups({ columns: width }),
  ]);
  return merge;
}
