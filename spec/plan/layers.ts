/** The layer of each step of a program, by the numbers in its block, or in the names of weights. */

import type { Plan, Program } from "./plan.ts";

/** Names of layers in order, and the layer of each step. */
export interface Layers {
  readonly names: readonly string[];
  /** Number in the model, for layers that have one. */
  readonly numbers: readonly (number | undefined)[];
  readonly of: readonly number[];
}

/**
 * The layer number in the name of a block, a parameter, a state or a port: `model.layers.3.keys`,
 * `layer3.router_logits`.
 */
export function layerOf(name: string): number | undefined {
  const number = /(?:^|\.)(?:layer)?(\d+)(?:\.|$)/.exec(name)?.[1];
  return number === undefined ? undefined : Number(number);
}

/** The block of a layer that a block is in: `model.layers.3` of `model.layers.3.moe`. Undefined: in none. */
export function layerBlock(block: string): string | undefined {
  return /^(?:.*?\.)?(?:layer)?\d+(?=\.|$)/.exec(block)?.[0];
}

/**
 * The layers of a program. Steps without a block and without a weight belong to the layer of the previous step. A model
 * without numbers has one layer.
 */
export function layersOf(plan: Plan, program: Program): Layers {
  const sources = new Map(
    plan.weights.map(({ buffer, source }) => [buffer, source]),
  );
  const names: string[] = [];
  const of: number[] = [];
  let at = 0;
  for (const step of program.steps) {
    const weights = step.op === "launch"
      ? Object.values(step.bindings).flatMap((name) => sources.get(name) ?? [])
      : [];
    const [number] = [step.block ?? "", ...weights]
      .flatMap((name) => layerOf(name) ?? []);
    const numbered = names.some((name) => /\d/.test(name));
    const name = number !== undefined
      ? `layer ${number}`
      : weights.length === 0
      ? undefined
      : numbered
      ? "end"
      : "begin";
    if (name !== undefined) {
      const known = names.indexOf(name);
      at = known >= 0 ? known : names.push(name) - 1;
    } else if (names.length === 0) names.push("begin");
    of.push(at);
  }
  const numbers = names.map((name) => {
    const number = /^layer (\d+)$/.exec(name)?.[1];
    return number === undefined ? undefined : Number(number);
  });
  if (names.length === 1) names[0] = "all";
  return { names: names.length > 0 ? names : ["all"], numbers, of };
}
