/** Reading a Hugging Face config.json: typed fields, the family's defaults, and clear errors. */

import { DataError } from "../compiler/mod.ts";

/** A parsed config.json. */
export type Config = { readonly [key: string]: unknown };

/** What a run needs room for. */
export interface Bounds {
  /** Tokens of one step, all sequences together. */
  readonly maxTokens: number;
  /** Sequences that a cache is kept for. */
  readonly maxSequences: number;
  /** Positions of one sequence. */
  readonly maxContext: number;
}

/** An integer field of at least `least`. */
export function integerField(
  config: Config,
  key: string,
  options: { readonly default?: number; readonly least?: number } = {},
): number {
  const value = config[key] ?? options.default;
  const least = options.least ?? 1;
  if (
    typeof value !== "number" || !Number.isInteger(value) || value < least
  ) {
    throw fieldError(key, value, `an integer of at least ${least}`);
  }
  return value;
}

/** A number above 0. */
export function positiveField(
  config: Config,
  key: string,
  fallback: number,
): number {
  const value = config[key] ?? fallback;
  if (typeof value !== "number" || !Number.isFinite(value) || value <= 0) {
    throw fieldError(key, value, "a number above 0");
  }
  return value;
}

/** A positive number, or nothing where the field is null or missing. */
export function optionalField(
  config: Config,
  key: string,
): number | undefined {
  return config[key] === undefined || config[key] === null
    ? undefined
    : positiveField(config, key, 1);
}

/** A boolean field. */
export function booleanField(
  config: Config,
  key: string,
  fallback: boolean,
): boolean {
  const value = config[key] ?? fallback;
  if (typeof value !== "boolean") {
    throw fieldError(key, value, "true or false");
  }
  return value;
}

/** Refuse a field whose value changes the model in a way that is not built. */
export function requireField(
  config: Config,
  key: string,
  only: unknown,
): void {
  const value = config[key] ?? only;
  if (value !== only) {
    throw fieldError(key, value, `${JSON.stringify(only)}, the only one built`);
  }
}

/** The rotary base, from either place where transformers writes it; scaled rotary embeddings are refused. */
export function ropeTheta(config: Config, fallback: number): number {
  for (const key of ["rope_scaling", "rope_parameters"]) {
    const rope = config[key];
    if (rope === undefined || rope === null) continue;
    if (typeof rope !== "object") throw fieldError(key, rope, "an object");
    const fields = rope as Config;
    const type = fields["rope_type"] ?? fields["type"] ?? "default";
    if (type !== "default") {
      throw fieldError(key, type, "of type 'default', the only one built");
    }
    if (fields["rope_theta"] !== undefined) {
      return positiveField(fields, "rope_theta", fallback);
    }
  }
  return positiveField(config, "rope_theta", fallback);
}

/** Refuse sizes that do not divide. */
export function requireMultiple(
  config: { readonly name: string; readonly value: number },
  of: { readonly name: string; readonly value: number },
): void {
  if (config.value % of.value === 0) return;
  throw new DataError(
    `Cannot read config.json: '${config.name}' is ${config.value}, which is no multiple of '${of.name}', ${of.value}. Check the file`,
  );
}

function fieldError(key: string, value: unknown, wanted: string): DataError {
  const state = value === undefined
    ? "is missing"
    : `is ${JSON.stringify(value)}`;
  return new DataError(
    `Cannot read config.json: '${key}' ${state}. It must be ${wanted}`,
  );
}
