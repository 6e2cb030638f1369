/** Rotations of layers with a sliding window and without one, in files that have keys for both. */

import type { GgufArchitecture } from "./architecture.ts";
import { type GgufKeys, numberOf } from "./header.ts";
import { FULL, SLIDING } from "./layer_types.ts";
import { ropeScalingKeys, yarnMagnitude } from "./rope_scaling.ts";
import { unrepresentable } from "./unrepresentable.ts";
import type { GgufValues } from "./write.ts";

type Config = { readonly [field: string]: unknown };

/** Returns the field with the rotation of layers with a window. Positions of these layers are not scaled. */
export function slidingRotation(name: string, keys: GgufKeys): Config {
  const number = (key: string) => numberOf(keys, `${name}.${key}`);
  const width = number("attention.key_length") ?? NaN;
  return {
    swa_rope_parameters: {
      rope_theta: number("rope.freq_base_swa") ?? number("rope.freq_base"),
      partial_rotary_factor: (number("rope.dimension_count_swa") ?? width) /
        width,
    },
  };
}

/** Returns the keys of the rotations of a config.json. `slides`: some layers have a window. */
export function rotationKeys(
  name: string,
  config: ReadonlyMap<string, unknown>,
  { row, slides }: { readonly row: GgufArchitecture; readonly slides: boolean },
): GgufValues {
  const width = Number(config.get("head_dim"));
  /** The rotation of a type of layers, with the keys of its scaling. */
  const rotary = (type: string) => {
    const { partial_rotary_factor: part = 1, ...scaling } =
      (config.get(type) ?? {}) as Config;
    const { attention_factor: magnitude, factor, ...rest } = scaling;
    const usual = magnitude === undefined ||
      Math.abs(Number(magnitude) - yarnMagnitude(Number(factor))) < 1e-4;
    const base = Number(scaling["rope_theta"]);
    const dim = Math.floor(width * Number(part));
    const fields = { ...rest, ...factor === undefined ? {} : { factor } };
    const keys = usual
      ? ropeScalingKeys(fields, { row, base, dim })
      : undefined;
    if (keys === undefined || !Number.isFinite(base)) {
      throw unrepresentable(name, type, scaling);
    }
    return { base, dim, keys };
  };
  const full = rotary(FULL);
  const sliding = slides ? rotary(SLIDING) : undefined;
  if (sliding && Object.keys(sliding.keys).length > 0) {
    throw unrepresentable(name, SLIDING, config.get(SLIDING));
  }
  return {
    ...full.keys,
    // 0: no layer has a window.
    "attention.sliding_window": {
      u32: slides ? Number(config.get("sliding_window")) : 0,
    },
    "rope.freq_base": { f32: full.base },
    "rope.dimension_count": { u32: full.dim },
    ...sliding
      ? {
        "rope.freq_base_swa": { f32: sliding.base },
        "rope.dimension_count_swa": { u32: sliding.dim },
      }
      : {},
  };
}
