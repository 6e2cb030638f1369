/** Parameters of a summary: counted, and as bytes of files and of ranks. */

import type { ParamFacts } from "../../compiler/mod.ts";
import {
  encodedBytes,
  encodingTitle,
  isFileDType,
  type WeightEncoding,
} from "../../spec/encoding.ts";
import {
  onRank,
  type Plan,
  type PlanBuffer,
  type PlanWeight,
} from "../../spec/plan.ts";
import type { ModelSummary } from "../../spec/plan_summary.ts";

/** The parameters of a model, and how each is stored. */
export interface ModelWeights {
  readonly params: readonly ParamFacts[];
  storedAs(param: ParamFacts): WeightEncoding;
}

/** Count the parameters of a model. */
export function summarizeModel(
  { params, storedAs }: ModelWeights,
): ModelSummary {
  const stored = new Map<string, number>();
  for (const param of params) {
    const title = encodingTitle(storedAs(param));
    stored.set(title, (stored.get(title) ?? 0) + fileBytes(param, storedAs));
  }
  return {
    parameters: sum(params, ({ elements }) => elements),
    activeParameters: sum(params, ({ active }) => active),
    ...bytesOf(stored),
  };
}

/** Count the weights of a plan whose model is not there. */
export function summarizeWeights(plan: Plan): ModelSummary {
  const stored = new Map<string, number>();
  let parameters = 0;
  for (const weight of plan.weights) {
    const { shape, stack } = weight;
    const copies = stack === undefined ? 1 : plan.axes[stack]!.size;
    const elements = copies * shape.reduce((n, size) => n * size, 1);
    const part = blockPart(weight);
    // Eight elements to a word; a scale is a byte in files, and part of the elements that it is for.
    parameters += part === "blocks"
      ? elements * 8
      : part === "scales"
      ? 0
      : elements;
    const title = part === undefined ? weight.stored : "mxfp4";
    const bytes = part === "scales"
      ? elements
      : elements * (title === "f16" || title === "bf16" ? 2 : 4);
    stored.set(title, (stored.get(title) ?? 0) + bytes);
  }
  return { parameters, ...bytesOf(stored) };
}

/** Which of the two buffers of an MXFP4 parameter a weight fills. */
function blockPart(
  { stored, source }: PlanWeight,
): "blocks" | "scales" | undefined {
  const [, part] = stored === "u32"
    ? /_(blocks|scales)$/.exec(source) ?? []
    : [];
  return part as "blocks" | "scales" | undefined;
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

/**
 * Bytes of a weight buffer on a rank: what the plan allocates, or for weights that no kernel reads yet as they are, what
 * they take as they are stored.
 */
export function heldBytes(
  plan: Plan,
  { params, storedAs }: ModelWeights,
): (buffer: PlanBuffer, rank: number) => number {
  const packed = new Map(
    params.filter((param) => !isFileDType(storedAs(param).name))
      .map((param) => [param.name, param]),
  );
  return (buffer, rank) => {
    const param = buffer.kind === "weight"
      ? packed.get(buffer.name)
      : undefined;
    if (param === undefined) return onRank(buffer.bytes, rank);
    const held = buffer.axes.reduce(
      (share, { axis, size }) =>
        share * onRank(size, rank) / plan.axes[axis]!.size,
      1,
    );
    return Math.round(fileBytes(param, storedAs) * held);
  };
}

function sum(
  params: readonly ParamFacts[],
  of: (param: ParamFacts) => number,
): number {
  return params.reduce((n, param) => n + of(param), 0);
}
