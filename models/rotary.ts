/** Rotary frequencies of a configuration: plain, or scaled to longer contexts (YaRN, Llama 3). */

import {
  booleanField,
  type Config,
  fieldError,
  ignoreFields,
  integerField,
  objectField,
  optionalField,
  optionalIntegerField,
  positiveField,
  requireField,
} from "./config.ts";

/** The rotation of pairs of elements by positions. */
export interface Rotary {
  readonly inverseFrequencies: readonly number[];
  /** Factor of cosines and sines. */
  readonly scale: number;
  /** Pairs are neighbouring elements instead of elements of the two halves. */
  readonly interleaved: boolean;
}

/**
 * Returns the scaling of rotary positions, from either field that transformers writes. `missing`: that of a
 * configuration with neither field.
 */
export function ropeScaling(config: Config, missing: Config = {}): Config {
  const isMissing = config["rope_scaling"] === undefined &&
    config["rope_parameters"] === undefined;
  return objectField(config, "rope_scaling") ??
    objectField(config, "rope_parameters") ?? (isMissing ? missing : {});
}

/** The defaults for reading frequencies. */
export interface RotaryDefaults {
  /** Elements of a head. */
  readonly dim: number;
  /** The family's default base. */
  readonly theta: number;
  readonly interleaved?: boolean;
  /**
   * The family's default fraction of a head that is rotated, from its start. Without it, only the whole head is
   * accepted.
   */
  readonly part?: number;
}

/** Reads the frequencies of a head. Unknown kinds are rejected. */
export function readRotary(
  config: Config,
  { dim: headDim, theta, interleaved = false, part }: RotaryDefaults,
): Rotary {
  const scaling = ropeScaling(config);
  const dim = part === undefined ? headDim : rotatedPart(config, headDim, part);
  if (part === undefined) {
    requireField(config, "partial_rotary_factor", 1);
    requireField(scaling, "partial_rotary_factor", 1);
  }
  const base = positiveField(
    scaling["rope_theta"] === undefined ? config : scaling,
    "rope_theta",
    { default: theta },
  );
  const plain = Array.from(
    { length: Math.floor(dim / 2) },
    (_, i) => base ** (-2 * i / dim),
  );
  const type = scaling["rope_type"] ?? scaling["type"] ?? "default";
  if (type === "default") {
    return { inverseFrequencies: plain, scale: 1, interleaved };
  }
  if (type === "llama3") {
    return {
      inverseFrequencies: llama3(scaling, plain),
      scale: 1,
      interleaved,
    };
  }
  if (type !== "yarn") {
    throw fieldError(
      "rope_scaling",
      type,
      "of type 'default', 'yarn' or 'llama3'",
    );
  }
  return { ...yarn(scaling, config, { plain, base, dim }), interleaved };
}

/**
 * Reads the rotation of a type of layers: its object in `rope_parameters`, or for layers without a window the fields of
 * the configuration. `part`: default fraction of a head that is rotated if the configuration describes no rotation.
 */
export function layerRotary(
  config: Config,
  type: "full_attention" | "sliding_attention",
  { dim, theta, part }: Omit<Required<RotaryDefaults>, "interleaved">,
): Rotary {
  const all = objectField(config, "rope_parameters") ?? {};
  const sliding = objectField(config, "swa_rope_parameters");
  const own = objectField(all, type) ??
    (type === "sliding_attention" ? sliding : undefined);
  if (own) {
    return readRotary({ rope_parameters: own }, { dim, theta, part: 1 });
  }
  // Models without windows have one rotation.
  const common = type === "full_attention" &&
    (config["rope_theta"] ?? all["rope_theta"]) !== undefined;
  return readRotary(common ? config : {}, {
    dim,
    theta,
    part: common ? 1 : part,
  });
}

/**
 * Returns the number of rotated elements of a head. Either field may hold a stale factor; that of the scaling takes
 * precedence.
 */
function rotatedPart(config: Config, dim: number, part: number): number {
  const elements = optionalIntegerField(config, "rotary_dim");
  const key = "partial_rotary_factor";
  // If both fields have it, one is stale.
  ignoreFields(config, [key]);
  const factor = optionalField(ropeScaling(config), key) ??
    positiveField(config, key, { default: part });
  const rotated = elements ?? Math.floor(dim * factor);
  if (rotated > 0 && rotated <= dim && rotated % 2 === 0) return rotated;
  throw fieldError(
    elements === undefined ? key : "rotary_dim",
    elements ?? factor,
    `an even number of a head's ${dim} elements`,
  );
}

/**
 * YaRN (arXiv 2309.00071): pairs that rotate less than `beta_slow` times over the original context are slowed by
 * `factor`. Pairs that rotate more than `beta_fast` times are unchanged. The others are interpolated on a ramp.
 */
function yarn(
  scaling: Config,
  config: Config,
  { plain, base, dim }: {
    readonly plain: readonly number[];
    readonly base: number;
    readonly dim: number;
  },
): Omit<Rotary, "interleaved"> {
  const factor = positiveField(scaling, "factor");
  const key = "original_max_position_embeddings";
  const original = (scaling[key] ?? undefined) === undefined
    ? integerField(config, "max_position_embeddings")
    : integerField(scaling, key);
  const pairOf = (turns: number) =>
    dim * Math.log(original / (2 * Math.PI * turns)) / (2 * Math.log(base));
  const truncate = booleanField(scaling, "truncate", { default: true });
  const fast = pairOf(positiveField(scaling, "beta_fast", { default: 32 }));
  const slow = pairOf(positiveField(scaling, "beta_slow", { default: 1 }));
  const low = Math.max(0, truncate ? Math.floor(fast) : fast);
  const high = Math.min(dim - 1, truncate ? Math.ceil(slow) : slow);
  const span = high === low ? 0.001 : high - low;
  return {
    inverseFrequencies: plain.map((frequency, i) => {
      const ramp = Math.min(1, Math.max(0, (i - low) / span));
      return frequency / factor * ramp + frequency * (1 - ramp);
    }),
    scale: optionalField(scaling, "attention_factor") ?? magnitude(scaling),
  };
}

/**
 * Llama 3.1 (transformers, `rope_type` llama3): pairs with a wavelength above the original context / `low_freq_factor`
 * are slowed by `factor`. Pairs below the original context / `high_freq_factor` are unchanged. The others are
 * interpolated linearly in the number of rotations over the original context.
 */
function llama3(scaling: Config, plain: readonly number[]): number[] {
  const factor = positiveField(scaling, "factor");
  const low = positiveField(scaling, "low_freq_factor");
  const high = positiveField(scaling, "high_freq_factor");
  const original = integerField(scaling, "original_max_position_embeddings");
  return plain.map((frequency) => {
    const turns = original * frequency / (2 * Math.PI);
    if (turns > high) return frequency;
    if (turns < low) return frequency / factor;
    // If both factors are equal, only a pair exactly at the limit reaches this line.
    const mix = high === low ? 0 : (turns - low) / (high - low);
    return frequency / factor * (1 - mix) + frequency * mix;
  });
}

/** Returns YaRN's factor of cosines and sines, if the configuration has none. */
function magnitude(scaling: Config): number {
  const factor = positiveField(scaling, "factor");
  const mscale = optionalField(scaling, "mscale");
  const all = optionalField(scaling, "mscale_all_dim");
  return mscale !== undefined && all !== undefined
    ? yarnMagnitude(factor, mscale) / yarnMagnitude(factor, all)
    : yarnMagnitude(factor, 1);
}

/** 0.1 · weight · ln(factor) + 1 */
export function yarnMagnitude(factor: number, weight: number): number {
  return factor <= 1 ? 1 : 0.1 * weight * Math.log(factor) + 1;
}
