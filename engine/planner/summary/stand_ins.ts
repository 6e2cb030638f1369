/** Layers that stand for others: what is planned of a deep model is each kind of layer, not each layer. */

import type { Decoder } from "../../../models/mod.ts";
import { layerOf } from "../../../spec/plan/layers.ts";

/** The layers to build of a model. */
export interface StandIns {
  readonly layers: readonly number[];
  /** The layers that a built one stands for, itself among them; of a number that is not built: none. */
  of(layer: number): readonly number[];
  /** For how many layers something is there that has the number of one in its name; what has none is there once. */
  times(name: string): number;
}

/**
 * Which layers stand for which. Of each kind, two are built: the first follows another kind, the second its own, and
 * stands for all others but the last of the model, after which other things are done. What a plan keeps grows by a
 * layer, and what it needs at once is the same, however many follow.
 */
export function standIns({ layers, kindOf }: Decoder): StandIns {
  const kinds = new Map<string, number[]>();
  for (let layer = 0; layer < layers - 1; layer++) {
    const kind = JSON.stringify(kindOf(layer));
    kinds.set(kind, [...kinds.get(kind) ?? [], layer]);
  }
  const stands = new Map<number, readonly number[]>();
  for (const equal of kinds.values()) {
    const [first, second, ...others] = equal;
    stands.set(first!, [first!]);
    if (second !== undefined) stands.set(second, [second, ...others]);
  }
  stands.set(layers - 1, [layers - 1]);
  return withStands(stands);
}

/** Every layer stands for itself. */
export const EACH_ITSELF: StandIns = {
  layers: [],
  of: (layer) => [layer],
  times: () => 1,
};

function withStands(stands: ReadonlyMap<number, readonly number[]>): StandIns {
  const of = (layer: number) => stands.get(layer) ?? [];
  return {
    layers: [...stands.keys()].sort((a, b) => a - b),
    of,
    times: (name) => {
      const layer = layerOf(name);
      return layer === undefined ? 1 : of(layer).length;
    },
  };
}
