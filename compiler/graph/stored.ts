/** Storage dtypes of parameters, in files and in training. */

import { shortAxis } from "../../spec/axis_name.ts";
import { type FileDType, type HalfDType, isHalf } from "../../spec/dtype.ts";
import type { Graph, NodeOf } from "./graph.ts";
import { isTrained, type TrainedParameters } from "./adapters.ts";
import { selectionBiases } from "./selection_bias.ts";

/** Storage dtypes of trained parameters. Master weights of 16-bit parameters are f32. */
export type TrainedDType = "f32" | HalfDType;

/** Dtypes by the name of a source tensor. */
export type StoredDTypes = { readonly [tensor: string]: FileDType };

/** The source tensor of a parameter; for a stacked one, the first. */
export function tensorOf({ params: { name, stack } }: NodeOf<"param">): string {
  return stack === undefined
    ? name
    : name.replaceAll(`{${shortAxis(stack)}}`, "0");
}

/** Storage of a graph's parameters in training. */
export interface TrainedStorage {
  readonly weights: StoredDTypes;
  /** Names of the 16-bit parameters. */
  readonly masters: ReadonlySet<string>;
}

/**
 * Storage dtypes of trained parameters: the 16-bit dtype of the file, or `dtype`; otherwise f32. Constant parameters
 * have the dtype of the file. The selection bias of a router is always f32: 16 bits would lose its steps, and it has no
 * optimizer.
 */
export function storedForTraining(
  { nodes }: Pick<Graph, "nodes">,
  weights: StoredDTypes,
  { dtype, trained }: {
    readonly dtype?: TrainedDType | undefined;
    readonly trained?: TrainedParameters | undefined;
  },
): TrainedStorage {
  const biases = selectionBiases(nodes);
  const stored: { [tensor: string]: FileDType } = {};
  const masters = new Set<string>();
  for (const node of nodes) {
    if (node.primitive !== "param" || node.dtype !== "f32") continue;
    const tensor = tensorOf(node);
    const updated = isTrained(node.params.name, trained);
    const wanted = (updated ? dtype : undefined) ?? weights[tensor];
    if (wanted === undefined || updated && biases.has(node)) continue;
    if (updated && !isHalf(wanted)) continue;
    stored[tensor] = wanted;
    if (updated) masters.add(node.params.name);
  }
  return { weights: stored, masters };
}
