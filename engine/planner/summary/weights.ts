/** Parameters of a summary: counts, and bytes in files and on ranks. */

import type { ParamFacts } from "../../../compiler/mod.ts";
import {
  encodedBytes,
  encodingTitle,
  type WeightEncoding,
} from "../../../spec/weights/encoding.ts";
import type { Plan } from "../../../spec/plan/plan.ts";
import { plannedParts } from "../../../spec/weights/packed.ts";
import { STORED_BYTES } from "../../../spec/dtype.ts";
import type { Representatives } from "./representatives.ts";
import type { ModelSummary } from "../../../spec/plan_summary.ts";

/** The parameters of a model and their storage. */
export interface ModelWeights {
  /** Parameters of the representative layers. */
  readonly params: readonly ParamFacts[];
  readonly representatives: Representatives;
  storedAs(param: ParamFacts): WeightEncoding;
}

/** Counts the parameters of a model. */
export function summarizeModel(
  { params, representatives, storedAs }: ModelWeights,
): ModelSummary {
  const stored = new Map<string, number>();
  let [parameters, activeParameters] = [0, 0];
  for (const param of params) {
    const title = encodingTitle(storedAs(param));
    const times = representatives.times(param.name);
    const bytes = times * fileBytes(param, storedAs);
    stored.set(title, (stored.get(title) ?? 0) + bytes);
    parameters += times * param.elements;
    activeParameters += times * param.active;
  }
  return {
    parameters,
    activeParameters,
    ...bytesOf(stored),
  };
}

/** Counts the weights of a plan without its model. */
export function summarizeWeights(plan: Plan): ModelSummary {
  const stored = new Map<string, number>();
  let parameters = 0;
  const words = new Set(
    plan.weights.flatMap(({ stored, source }) =>
      stored === "u32" ? [source] : []
    ),
  );
  const parts = plannedParts(
    plan.weights.map(({ source }) => source),
    (name) => words.has(name),
  );
  for (const weight of plan.weights) {
    const { shape, stack } = weight;
    const copies = stack === undefined ? 1 : plan.axes[stack]!.size;
    const elements = copies * shape.reduce((n, size) => n * size, 1);
    const part = parts.get(weight.source);
    // Several elements share a word; a scale counts with its elements.
    parameters += Math.round(elements * (part?.perWord ?? 1));
    const title = part?.title ?? weight.stored;
    const bytes = elements *
      (part?.perWord === 0 && weight.stored === "u32"
        ? 1
        : STORED_BYTES[weight.stored]);
    stored.set(title, (stored.get(title) ?? 0) + bytes);
  }
  return { parameters, ...bytesOf(stored) };
}

function bytesOf(
  stored: ReadonlyMap<string, number>,
): Pick<ModelSummary, "bytes" | "stored"> {
  return {
    bytes: [...stored.values()].reduce((n, bytes) => n + bytes, 0),
    stored: Object.fromEntries([...stored].sort(([, a], [, b]) => b - a)),
  };
}

/** Bytes of a parameter in files. */
export function fileBytes(
  param: ParamFacts,
  storedAs: ModelWeights["storedAs"],
): number {
  const { count, ...shape } = param.matrix;
  return count * encodedBytes(storedAs(param), shape);
}
