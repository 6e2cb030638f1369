/** Contractions that the tiled kernel does not support: one invocation per element, or batches of matrices. */

import { elementwiseGrid } from "../../../../spec/kernel/elementwise.ts";
import type { Expr } from "../../../../spec/kernel/tree.ts";
import { segmentsOf } from "../../../../spec/numerics.ts";
import type { Size } from "../../../../spec/size.ts";
import type { NodeOf } from "../../../graph/graph.ts";
import { reduce, type ReduceOptions } from "../../../kernels/reduce.ts";
import { REDUCE_TEAMS, reduceInTeams } from "../../../kernels/reduce_teams.ts";
import { WORDS_AT_ONCE } from "../../../tuning/queries.ts";
import { amendBuffer, type Lowering, productOf } from "../context.ts";
import { emitValue } from "../emit.ts";
import { resultOf } from "../epilogue.ts";
import { atFlat, atJoined } from "../indices.ts";
import { joinedPart } from "../joined.ts";
import type { KernelScope } from "../scope.ts";
import { lowerBatches, packedRight } from "./batches.ts";
import {
  contractForm,
  FEW_RESULTS,
  launchContract,
  resultsOfToken,
} from "./contractions.ts";
import { forRows } from "./inline_norms.ts";
import { launchMerged } from "./merged_contract.ts";

/** The number of products of a dot; in segments if it is fixed. */
function contracted(
  scope: KernelScope,
  { over, segments }: NodeOf<"dot">["params"],
): { readonly length: number | Expr; readonly segments?: number } {
  const length = productOf(scope, over);
  if (length.op !== "const") return { length };
  const k = Number(length.value);
  return { length: k, segments: segments ?? segmentsOf(k) };
}

/**
 * Lowers a dot that the tiled kernel does not support: one invocation per element. `joined`: the concatenation that
 * contains it, whose kernel computes all parts.
 */
export function lowerContract(
  lowering: Lowering,
  node: NodeOf<"dot">,
  joined?: NodeOf<"concat">,
): void {
  const packed = packedRight(lowering, node);
  if (packed) return lowerBatches(lowering, node, { packed, joined });
  const { over } = node.params;
  const target = joined ?? node;
  const { scope, space, storage, epilogue, launch } = resultOf(
    lowering,
    target,
  );
  const part = joined && joinedPart(scope, joined, node);
  const wide = lowering.options.tuning.wideRows === true;
  const { length, segments = 1 } = contracted(scope, node.params);
  const options: ReduceOptions = {
    name: `contract_${over.join("_")}`,
    kind: "sum",
    count: space.count,
    length,
    segments,
    bindings: scope.bindings,
    epilogue,
    ...wide ? { atOnce: WORDS_AT_ONCE } : {},
    ...part
      ? {
        others: {
          isResult: (i) => part.contains(space.at(i)),
          store: (i) => epilogue(i, (at) => part.outside(at)),
        },
      }
      : {},
    terms: (i, k) => {
      const at = space.at(i);
      const inner = part ? part.within(at) : at;
      const all = atJoined(over, atFlat(scope, over, k), inner);
      return node.inputs.map((input) => emitValue(scope, input, all));
    },
  };
  const inTeams = wide && !part && typeof length === "number" &&
    segments >= REDUCE_TEAMS && resultsOfToken(lowering, node) < FEW_RESULTS;
  const kernel = inTeams
    ? reduceInTeams({ ...options, length, segments })
    : reduce(options);
  const form = contractForm(lowering, node);
  const merged = inTeams
    ? launchMerged(lowering, node, { storage, segments })
    : undefined;
  if (!form && !merged) return launch(kernel);
  const few = form
    ? forRows(space.size, { rows: form.by, most: form.above }).few
    : space.size;
  const rest: Size = merged?.upTo === undefined
    ? few
    : { above: [merged.tokens, merged.upTo, few] };
  let writers = merged ? 1 : 0;
  // Tokens that there cannot be have no launch.
  if (!merged || merged.upTo !== undefined) {
    scope.launch(target, kernel, elementwiseGrid(rest));
    writers += 1 + (form
      ? launchContract(lowering, node, {
        form,
        target: { node: target, storage },
        joined,
      })
      : 0);
  }
  if (writers > 1) amendBuffer(lowering, storage.buffer, { writers });
}
