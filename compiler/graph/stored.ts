/** What parameters are stored as: in the files that they come from, and while they are trained. */

import { shortAxis } from "../../spec/axis_name.ts";
import type { FileDType, HalfDType } from "../../spec/dtype.ts";
import type { Graph, NodeOf } from "./graph.ts";
import { selectionBiases } from "./selection_bias.ts";

/** What parameters that are trained can be stored as; masters of those in 16 bits are f32. */
export type TrainedDType = "f32" | HalfDType;

/** Dtypes by the name of a source tensor. */
export type StoredDTypes = { readonly [tensor: string]: FileDType };

/** The source tensor of a parameter, or the first of those that are stacked. */
export function tensorOf({ params: { name, stack } }: NodeOf<"param">): string {
  return stack === undefined
    ? name
    : name.replaceAll(`{${shortAxis(stack)}}`, "0");
}

/** How the parameters of a graph are stored while they are trained. */
export interface TrainedStorage {
  readonly weights: StoredDTypes;
  /** The names of those in 16 bits. */
  readonly masters: ReadonlySet<string>;
}

/**
 * Parameters keep the 16 bits that they are stored in, or are all stored as `dtype`. Others are f32, and so is the
 * selection bias of a router in any case: it goes by steps that 16 bits would lose, and has no optimizer.
 */
export function storedForTraining(
  { nodes }: Pick<Graph, "nodes">,
  weights: StoredDTypes,
  dtype: TrainedDType | undefined,
): TrainedStorage {
  const biases = selectionBiases(nodes);
  const stored: { [tensor: string]: FileDType } = {};
  const masters = new Set<string>();
  for (const node of nodes) {
    if (node.primitive !== "param" || node.dtype !== "f32") continue;
    const tensor = tensorOf(node);
    const wanted = dtype ?? weights[tensor];
    if (wanted !== "f16" && wanted !== "bf16" || biases.has(node)) continue;
    stored[tensor] = wanted;
    masters.add(node.params.name);
  }
  return { weights: stored, masters };
}
