/** Representative layers: a deep model is planned by its kinds of layers instead of all layers. */

import type { Decoder } from "../../../models/mod.ts";
import { layerOf } from "../../../spec/plan/layers.ts";

/** The layers of a model to build. */
export interface Representatives {
  readonly layers: readonly number[];
  /** The layers that a built one represents, including itself. Empty for a layer that is not built. */
  of(layer: number): readonly number[];
  /** Number of layers represented by the layer number in a name; 1 without a number. */
  times(name: string): number;
}

/**
 * Chooses the representative layers. Two layers of each kind are built: the first follows another kind, the second its
 * own. The second represents all others except the last layer of the model, which is followed by other ops. Persistent
 * memory of a plan grows linearly with layers, and scratch memory is independent of their number.
 *
 * `stageOf`: the pipeline stage of a layer; equal layers of other stages are represented by others.
 */
export function representativeLayers(
  { layers, kindOf }: Decoder,
  stageOf: (layer: number) => number = () => 0,
): Representatives {
  const kinds = new Map<string, number[]>();
  for (let layer = 0; layer < layers - 1; layer++) {
    const kind = JSON.stringify([stageOf(layer), kindOf(layer)]);
    kinds.set(kind, [...kinds.get(kind) ?? [], layer]);
  }
  const represented = new Map<number, readonly number[]>();
  for (const equal of kinds.values()) {
    const [first, second, ...others] = equal;
    represented.set(first!, [first!]);
    if (second !== undefined) represented.set(second, [second, ...others]);
  }
  represented.set(layers - 1, [layers - 1]);
  return representing(represented);
}

/** Every layer represents itself. */
export const EACH_ITSELF: Representatives = {
  layers: [],
  of: (layer) => [layer],
  times: () => 1,
};

function representing(
  represented: ReadonlyMap<number, readonly number[]>,
): Representatives {
  const of = (layer: number) => represented.get(layer) ?? [];
  return {
    layers: [...represented.keys()].sort((a, b) => a - b),
    of,
    times: (name) => {
      const layer = layerOf(name);
      return layer === undefined ? 1 : of(layer).length;
    },
  };
}
