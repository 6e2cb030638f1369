/** Scaling of rotary positions, from the keys of a GGUF file and back. */

import { DataError } from "../../spec/errors.ts";
import { shown } from "../../spec/shown.ts";
import type { GgufArchitecture } from "./architecture.ts";
import { type GgufKeys, numberOf } from "./header.ts";
import type { GgufValues } from "./write.ts";

type Config = { readonly [field: string]: unknown };

/** Keys of YaRN after `rope.scaling.`, by the field of config.json, with the value of files without the key. */
const YARN = {
  factor: { key: "factor", value: undefined },
  original_max_position_embeddings: {
    key: "original_context_length",
    value: undefined,
  },
  beta_fast: { key: "yarn_beta_fast", value: 32 },
  beta_slow: { key: "yarn_beta_slow", value: 1 },
} as const;

/** The key of a tenth of `mscale`, which multiplies the logits of latent attention. */
const MULTIPLIER = "yarn_log_multiplier";

/** Keys of the growth of queries with the position: its scale, and the length of its steps. */
export const TEMPERATURE = {
  scale: "attention.temperature_scale",
  length: "attention.temperature_length",
} as const;

/** Returns a number with the digits that a float of 32 bits has. */
function rounded(value: number): number {
  return Number(value.toPrecision(6));
}

function magnitudes(mscale: number): Config {
  return { mscale, mscale_all_dim: mscale };
}

/** A row of the table of architectures and its name. */
interface Architecture {
  readonly name: string;
  readonly row: GgufArchitecture;
}

/** Keys that change YaRN in ways that only these values leave out. */
const PLAIN = { yarn_ext_factor: 1, attn_factor: 1 };

/** The key of the factor of cosines and sines, which llama.cpp does not use. */
const MAGNITUDE = "yarn_attn_factor";

/** Returns YaRN's factor of cosines and sines for a factor of positions. */
export function yarnMagnitude(factor: number): number {
  return 1 + 0.1 * Math.log(factor);
}

/**
 * Returns `rope_scaling` of config.json. Undefined if positions are not scaled. Throws DataError for a kind of scaling
 * that is not read.
 */
export function ropeScalingOf(
  path: string,
  keys: GgufKeys,
  { name, row }: Architecture,
): Config | undefined {
  const at = (key: string) => `${name}.rope.scaling.${key}`;
  const type = keys[at("type")] ?? "none";
  if (type === "none") return undefined;
  const refuse = (key: string, read: string): never => {
    throw new DataError(
      `Cannot open '${path}': its key '${at(key)}' is '${
        shown(String(keys[at(key)]))
      }', and only ${read} is read. Use another file`,
    );
  };
  if (type !== "yarn") refuse("type", "'none' or 'yarn'");
  for (const [key, value] of Object.entries(PLAIN)) {
    if ((numberOf(keys, at(key)) ?? value) !== value) {
      refuse(key, String(value));
    }
  }
  const magnitude = numberOf(keys, at(MAGNITUDE)) ?? 1;
  const usual = yarnMagnitude(numberOf(keys, at("factor")) ?? 1);
  if (magnitude !== 1 && Math.abs(magnitude - usual) > 1e-4) {
    refuse(MAGNITUDE, "1");
  }
  const multiplier = numberOf(keys, at(MULTIPLIER));
  const growth = numberOf(keys, `${name}.${TEMPERATURE.scale}`);
  return {
    rope_type: "yarn",
    ...row.scalesByDefault ? { truncate: false } : {},
    ...row.latent && multiplier !== undefined
      ? magnitudes(rounded(10 * multiplier))
      : {},
    ...row.hasTemperature && growth !== undefined
      ? { llama_4_scaling_beta: rounded(growth) }
      : {},
    ...Object.fromEntries(
      Object.entries(YARN).flatMap(([field, { key, value }]) => {
        const found = numberOf(keys, at(key)) ?? value;
        return found === undefined ? [] : [[field, found]];
      }),
    ),
  };
}

/**
 * Returns the keys of the scaling of a config.json, without the name of the architecture. Undefined if files cannot
 * represent it: another kind, or a field without a key.
 */
export function ropeScalingKeys(
  scaling: Config,
  { row, base, dim }: Pick<Architecture, "row"> & {
    /** The base of the rotary frequencies, and the rotated elements of a head. */
    readonly base: number;
    readonly dim: number;
  },
): GgufValues | undefined {
  const { rope_type, type, rope_theta: _, llama_4_scaling_beta, ...fields } =
    scaling;
  const kind = rope_type ?? type ?? "default";
  if (kind === "default") return {};
  // The tensor `rope_freqs` has it.
  const { rope_type: tensorKind, ...others } = row.scaling ?? {};
  const same = Object.entries(others).every(([field, value]) =>
    fields[field] === value
  );
  if (kind === tensorKind && same) return {};
  const { alpha, factor } = fields;
  if (row.raisesBase && kind === "dynamic" && typeof alpha === "number") {
    if (factor !== 1) return undefined;
    const raised = base * alpha ** (dim / (dim - 2));
    return { "rope.freq_base": { f32: raised } };
  }
  const { mscale, mscale_all_dim: all } = fields;
  const magnitude = row.latent && typeof all === "number" && mscale === all
    ? magnitudes(all)
    : {};
  const known = Object.entries(fields).every(([field, value]) =>
    Object.hasOwn(YARN, field) || Object.hasOwn(magnitude, field) ||
    field === "truncate" && value === !row.scalesByDefault
  );
  const rounds = fields["truncate"] !== false;
  if (kind !== "yarn" || !known || rounds === row.scalesByDefault) {
    return undefined;
  }
  const keys: GgufValues = Object.fromEntries(
    Object.entries(YARN).flatMap(([field, { key }]) => {
      const value = fields[field];
      if (typeof value !== "number") return [];
      const written = key === "original_context_length"
        ? { u32: value }
        : { f32: value };
      return [[`rope.scaling.${key}`, written]];
    }),
  );
  const length = Number(fields["original_max_position_embeddings"]);
  return {
    "rope.scaling.type": { text: "yarn" },
    ...keys,
    ...typeof llama_4_scaling_beta === "number"
      ? {
        [TEMPERATURE.scale]: { f32: llama_4_scaling_beta },
        [TEMPERATURE.length]: { u32: length },
      }
      : {},
    ..."mscale" in magnitude
      ? { [`rope.scaling.${MULTIPLIER}`]: { f32: Number(all) / 10 } }
      : {},
  };
}
