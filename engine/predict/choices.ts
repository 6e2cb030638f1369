/** Choices of experts that a run recorded, as what a predicted step is assumed to choose. */

import type { HostTensor } from "../../runtime/mod.ts";
import { DataError } from "../../spec/errors.ts";
import { CHOICES } from "../replay.ts";

/** The choices of each router in order, padding left out. Throws DataError where the trace is not of so many tokens. */
export function recordedChoices(
  trace: { readonly [name: string]: HostTensor },
  tokens: number,
): ArrayLike<number>[] {
  const layers = Object.entries(trace)
    .filter(([name]) => CHOICES.test(name))
    .sort(([a], [b]) => layerOf(a) - layerOf(b));
  if (layers.length === 0) {
    throw new DataError(
      "Cannot predict with recorded choices: the file has no tensor 'layer{N}.topk_idx'. Give one that 'run --outputs' wrote",
    );
  }
  return layers.map(([name, { shape, data }]) => {
    // Padding chooses nothing, which a run records as -1.
    const chosen = [...data].filter((expert) => expert >= 0);
    const recorded = chosen.length / shape.at(-1)!;
    if (recorded === tokens) return chosen;
    throw new DataError(
      `Cannot predict with '${name}': it has the choices of ${recorded} tokens, and the step has ${tokens}. Give --tokens ${recorded}`,
    );
  });
}

function layerOf(name: string): number {
  return Number(/\d+/.exec(name)![0]);
}
