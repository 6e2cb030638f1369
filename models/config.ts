/** Reading a Hugging Face config.json: typed fields, the family's defaults, and clear errors. */

import { DataError, shown } from "../compiler/mod.ts";
import { mostOf, otherSpelling } from "./field_names.ts";

/** Values of fields by their keys: those of config.json, or the defaults of the family. */
export type Fields = ReadonlyMap<string, unknown>;

/** Key of the fields that were read. */
export const READ: unique symbol = Symbol("fields that were read");

/** A parsed config.json. */
export type Config = {
  readonly [key: string]: unknown;
  /** Present while a family reads it. Copies share it. */
  readonly [READ]?: Map<string, unknown>;
};

/** A config.json that records in `fields` which fields are read from it, and their values. */
export function recordFields(
  json: Config,
): { readonly config: Config; readonly fields: Fields } {
  const fields = new Map<string, unknown>();
  return { config: { ...json, [READ]: fields }, fields };
}

function record<T>(config: Config, key: string, value: T): T {
  config[READ]?.set(key, value);
  return value;
}

/** What a run needs room for. */
export interface Bounds {
  /** Tokens of one step, all sequences together. */
  readonly maxTokens: number;
  /** Sequences that a cache is kept for. */
  readonly maxSequences: number;
  /** Positions of one sequence. */
  readonly maxContext: number;
}

/** What a loss balances: the experts of each layer, or those of all layers with the same number as one. */
export type Balance = "layer" | "together";

/** How a decoder is built. */
export interface DecoderOptions extends Bounds {
  /** Only these layers, in order, to plan a model by layers that stand for others. Default: all. */
  readonly layers?: readonly number[] | undefined;
  /** Experts are not chosen but given: an input `layer{N}.topk_idx` for each router, named as what it chose. */
  readonly replay?: boolean;
  /**
   * Only what follows some tokens: those that the input `rows` numbers, at most one for each sequence. Without
   * `candidates` their `logits`; else as many of the largest, best first, as `candidates.logits` and `candidates.ids`.
   * What nothing needs of other tokens is not computed.
   */
  readonly next?: { readonly candidates?: number | undefined };
  /** With the loss of next tokens, given as the input `labels`, -100 where there is none. */
  readonly training?: {
    /** Weight of the loss that balances experts; 0: none. */
    readonly auxiliary: number;
    /** Experts of each layer among themselves, or of all layers together, as transformers does. Default: together. */
    readonly balance?: Balance | undefined;
    /** Compute what is inside attention and experts a second time for gradients, instead of keeping it. */
    readonly recompute?: boolean | undefined;
  };
}

/** The value of a field as config.json has it, for families that check it themselves. */
export function anyField(config: Config, key: string): unknown {
  return record(config, key, config[key]);
}

/** Declares fields that a family does not need: they change nothing, or repeat others. */
export function ignoreFields(config: Config, keys: readonly string[]): void {
  for (const key of keys) {
    if (key in config) record(config, key, config[key]);
  }
}

/**
 * The value of a field; undefined where it is missing or null. Throws DataError where it is missing and another key
 * stands in its place: the default would be taken without a word.
 */
function fieldValue(config: Config, key: string): unknown {
  record(config, key, config[key]);
  const other = config[key] === undefined
    ? otherSpelling(key, Object.keys(config))
    : undefined;
  if (other !== undefined) requireAbsent(config, other, key);
  return config[key] ?? undefined;
}

/** Refuse a field that says under another name what an architecture calls `key`. */
export function requireAbsent(
  config: Config,
  other: string,
  key: string,
): void {
  if ((config[other] ?? undefined) === undefined) return;
  throw new DataError(
    `Cannot read config.json: it has '${other}', and its architecture calls that '${key}'. Rename it`,
  );
}

/** An integer field of at least `min`, and at most what a field of that name may be. */
export function integerField(
  config: Config,
  key: string,
  options: { readonly default?: number; readonly min?: number } = {},
): number {
  const value = fieldValue(config, key) ?? options.default;
  const min = options.min ?? 1, max = mostOf(key);
  if (
    typeof value !== "number" || !Number.isInteger(value) || value < min ||
    value > max
  ) {
    throw fieldError(key, value, `an integer from ${min} to ${max}`);
  }
  return record(config, key, value);
}

/** A number above 0. */
export function positiveField(
  config: Config,
  key: string,
  options: { readonly default?: number } = {},
): number {
  const value = fieldValue(config, key) ?? options.default;
  if (typeof value !== "number" || !Number.isFinite(value) || value <= 0) {
    throw fieldError(key, value, "a number above 0");
  }
  return record(config, key, value);
}

/** A positive number, or nothing where the field is null or missing. */
export function optionalField(
  config: Config,
  key: string,
): number | undefined {
  return fieldValue(config, key) === undefined
    ? undefined
    : positiveField(config, key, { default: 1 });
}

/** An integer of at least 1, or nothing where the field is null or missing. */
export function optionalIntegerField(
  config: Config,
  key: string,
): number | undefined {
  return fieldValue(config, key) === undefined
    ? undefined
    : integerField(config, key);
}

/** A boolean field. */
export function booleanField(
  config: Config,
  key: string,
  options: { readonly default?: boolean } = {},
): boolean {
  const value = fieldValue(config, key) ?? options.default;
  if (typeof value !== "boolean") {
    throw fieldError(key, value, "true or false");
  }
  return record(config, key, value);
}

/** Refuse a field whose value changes the model in a way that is not built. */
export function requireField(
  config: Config,
  key: string,
  only: unknown,
): void {
  const value = fieldValue(config, key) ?? only;
  if (value !== only) {
    throw fieldError(key, value, `${JSON.stringify(only)}, the only one built`);
  }
}

/** Refuse `layer_types` that say another attention of a layer than the rest of the file does. */
export function requireLayerTypes(
  config: Config,
  kindOf: (layer: number) => string,
): void {
  const kinds: unknown = anyField(config, "layer_types") ?? [];
  if (
    Array.isArray(kinds) && kinds.every((kind, layer) => kind === kindOf(layer))
  ) return;
  const wanted = Array.isArray(kinds)
    ? JSON.stringify(kinds.map((_, layer) => kindOf(layer)))
    : "a list";
  throw fieldError("layer_types", kinds, wanted);
}

/** Kinds of layers, from the list `key`; `byDefault` of layers that it leaves out. */
export function layerTypes<K extends string>(
  config: Config,
  known: readonly K[],
  byDefault: (layer: number) => K,
  key = "layer_types",
): (layer: number) => K {
  const kinds: unknown = anyField(config, key) ?? [];
  if (
    !Array.isArray(kinds) || kinds.some((kind) => !known.includes(kind as K))
  ) {
    const names = known.map((kind) => `'${kind}'`).join(" and ");
    throw fieldError(key, kinds, `a list of ${names}`);
  }
  return (layer) => (kinds[layer] as K | undefined) ?? byDefault(layer);
}

/** An object, or nothing where the field is null or missing. */
export function objectField(config: Config, key: string): Config | undefined {
  const value = fieldValue(config, key);
  if (value === undefined) return undefined;
  if (typeof value !== "object" || Array.isArray(value)) {
    throw fieldError(key, value, "an object");
  }
  return value as Config;
}

/** The configuration of the text model, which a model of text and images has in a field of its own. */
export function textConfig(
  config: Config,
): { readonly config: Config; readonly wrapped: boolean } {
  const text = objectField(config, "text_config");
  if (text === undefined) return { config, wrapped: false };
  const { tie_word_embeddings = config["tie_word_embeddings"] } = text;
  return { config: { ...text, tie_word_embeddings }, wrapped: true };
}

/** A list of whole numbers, or nothing where the field is null or missing. */
export function integersField(
  config: Config,
  key: string,
): readonly number[] | undefined {
  const value = fieldValue(config, key);
  if (value === undefined) return undefined;
  if (!Array.isArray(value) || !value.every(Number.isInteger)) {
    throw fieldError(key, value, "a list of integers");
  }
  return value as readonly number[];
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

/** The complaint about a field. */
export function fieldError(
  key: string,
  value: unknown,
  wanted: string,
): DataError {
  const state = value === undefined
    ? "is missing"
    : `is ${shown(JSON.stringify(value))}`;
  return new DataError(
    `Cannot read config.json: '${key}' ${state}. It must be ${wanted}`,
  );
}
