/** Layers of GLM-5 that choose keys with an indexer, and layers that use the choice of an earlier layer. */

import type { GgufArchitecture } from "./architecture.ts";
import { layerCount, numberOf } from "./header.ts";

/** A number per layer: 1 if it has an indexer. */
const TYPES = "attention.indexer.types";

/** Positions of GLM-5.2, whose files may lack the key. */
const LONG = 1048576;

/** Layers of GLM-5.2: the first two, and every fourth after them. */
function longType(layer: number): string {
  return layer < 2 || layer % 4 === 2 ? "full" : "shared";
}

/** The field `indexer_types`. */
export const INDEXER_TYPES: NonNullable<GgufArchitecture["config"]> = {
  read(name, { keys, tensors }) {
    const list = keys[`${name}.${TYPES}`];
    if (Array.isArray(list)) {
      return {
        indexer_types: list.map((full) => Number(full) ? "full" : "shared"),
      };
    }
    const context = numberOf(keys, `${name}.context_length`) ?? 0;
    if (context < LONG) return {};
    // Limits the length of the list if the keys are wrong: every layer has a tensor.
    const layers = Math.min(layerCount(name, keys), tensors.length);
    return {
      indexer_types: Array.from({ length: layers }, (_, i) => longType(i)),
    };
  },
  write(_, config) {
    const layers = Number(config.get("num_hidden_layers"));
    const types = (config.get("indexer_types") ??
      Array<string>(layers).fill("full")) as readonly string[];
    return {
      [TYPES]: {
        i32s: types.map((type) => type === "full" ? 1 : 0),
      },
    };
  },
};
