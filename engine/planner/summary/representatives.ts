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
 * own. The second represents all others except the last layer of the model, which is followed by other ops. A second
 * between built layers of its kind is not built if both follow one kind in the model. Persistent memory of a plan grows
 * linearly with layers, and scratch memory is independent of their number.
 *
 * `stageOf`: the pipeline stage of a layer; equal layers of other stages are represented by others.
 */
export function representativeLayers(
  { layers, kindOf }: Decoder,
  stageOf: (layer: number) => number = () => 0,
): Representatives {
  const names = Array.from(
    { length: layers },
    (_, layer) => JSON.stringify([stageOf(layer), kindOf(layer)]),
  );
  const kinds = new Map<string, number[]>();
  for (const [layer, kind] of names.slice(0, -1).entries()) {
    kinds.set(kind, [...kinds.get(kind) ?? [], layer]);
  }
  const represented = new Map<number, readonly number[]>();
  for (const equal of kinds.values()) {
    const [first, second, ...others] = equal;
    represented.set(first!, [first!]);
    if (second !== undefined) represented.set(second, [second, ...others]);
  }
  represented.set(layers - 1, [layers - 1]);
  for (const equal of kinds.values()) {
    const [first, second] = equal as [number, number?];
    if (second === undefined || names[first - 1] !== names[second - 1]) {
      continue;
    }
    const built = [...represented.keys()].sort((a, b) => a - b);
    const at = built.indexOf(second);
    const [before, , after] = built.slice(at - 1);
    if (before !== first || names[after!] !== names[second]) continue;
    represented.delete(second);
    represented.set(first, equal);
  }
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
