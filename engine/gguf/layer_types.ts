/** Layers with a sliding window and without one, whose types files list. */

import { type GgufKeys, layerCount, numbersOf } from "./header.ts";
import type { GgufValues } from "./write.ts";

/** The types of layers with a window and without one. */
export const [SLIDING, FULL] = ["sliding_attention", "full_attention"] as const;

/** A boolean per layer: whether it has a window. */
const WINDOWS = "attention.sliding_window_pattern";

/** Returns the types of layers that a file lists. Empty if it has no list. */
export function slidingTypes(
  name: string,
  keys: GgufKeys,
): (typeof SLIDING | typeof FULL)[] {
  return numbersOf(keys, `${name}.${WINDOWS}`)
    .slice(0, layerCount(name, keys))
    .map((window) => window ? SLIDING : FULL);
}

/** Returns the key with the types of layers. */
export function windowKeys(types: readonly string[]): GgufValues {
  return { [WINDOWS]: { bools: types.map((type) => type === SLIDING) } };
}
