/** Matrices that LoRA adapts: groups, or names of modules. */

import { type Adapters, type Model, withAdapters } from "../../compiler/mod.ts";
import type { PublishedModel } from "../../models/mod.ts";
import { DataError } from "../../spec/errors.ts";

/** Settings of adapters in a training. */
export interface LoraSettings {
  /** Length of the axis between A and B. */
  readonly rank: number;
  /** The product of A and B is multiplied by `alpha / rank`. */
  readonly alpha: number;
  /** Groups (`attention`, `experts`), or last parts of module names, such as `q_proj`. */
  readonly targets: readonly string[];
}

/** Groups of matrices by the name of their parameter, and whether it has those of all experts. */
const GROUPS: { readonly [group: string]: Adapters["adapts"] } = {
  attention: (name) => /\.(self_attn|linear_attn|attention|attn)\./.test(name),
  experts: (name, fused) => fused || /\.\{expert\}\./.test(name),
};

/** Whether a target names the matrix of a parameter. */
function isTarget(
  parameter: string,
  { target, fused }: { readonly target: string; readonly fused: boolean },
): boolean {
  const group = Object.hasOwn(GROUPS, target) ? GROUPS[target] : undefined;
  if (group) return group(parameter, fused);
  const module = parameter.replace(/\.weight$/, "");
  return module === target || module.endsWith(`.${target}`);
}

/** The adapters of a training. Throws DataError for a rank or a factor that is no positive number. */
export function trainedAdapters(
  { rank, alpha, targets }: LoraSettings,
): Adapters {
  if (!Number.isSafeInteger(rank) || rank < 1 || rank > 1 << 12) {
    throw new DataError(
      `Cannot train adapters of rank ${rank}. Give a whole number from 1 to 4096`,
    );
  }
  if (!(alpha > 0) || alpha === Infinity) {
    throw new DataError(
      `Cannot train adapters with alpha ${alpha}. Give a positive number`,
    );
  }
  return {
    rank,
    scale: alpha / rank,
    adapts: (parameter, fused) =>
      targets.some((target) => isTarget(parameter, { target, fused })),
  };
}

/** Names of adapted parameters, and whether each has the matrices of all experts. */
export type AdaptedParameters = ReadonlyMap<string, boolean>;

/** The same adapters, and the parameters that have them once the model is traced. */
export function recorded(
  adapters: Adapters,
): { readonly adapters: Adapters; readonly parameters: AdaptedParameters } {
  const parameters = new Map<string, boolean>();
  return {
    parameters,
    adapters: {
      ...adapters,
      adapts: (parameter, fused) => {
        const wanted = adapters.adapts(parameter, fused);
        if (wanted) parameters.set(parameter, fused);
        return wanted;
      },
    },
  };
}

/** A published model whose matrices have adapters. */
export function adaptedModel(
  published: PublishedModel,
  adapters: Adapters,
): PublishedModel {
  return {
    ...published,
    build: (options) =>
      withAdapters(published.build(options), adapters) as Model,
  };
}
