/** Reads a Hugging Face config.json: typed fields, the family's defaults and error messages. */

import { DataError, type Scope, shown, type Tensor } from "../compiler/mod.ts";
import { maxOf, otherSpelling } from "./field_names.ts";

/** Field values by key, from config.json or the defaults of the family. */
export type Fields = ReadonlyMap<string, unknown>;

/** Key of the record of fields that were read. */
export const READ: unique symbol = Symbol("fields that were read");

/** A parsed config.json. */
export type Config = {
  readonly [key: string]: unknown;
  /** Present while a family reads it. Copies share it. */
  readonly [READ]?: Map<string, unknown>;
};

/** Returns a config.json that records in `fields` each field that is read, with its value. */
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

/** The maximum sizes of a run. */
export interface Bounds {
  /** Tokens of one step, over all sequences. */
  readonly maxTokens: number;
  /** Sequences that have a cache. */
  readonly maxSequences: number;
  /** Positions of one sequence. */
  readonly maxContext: number;
}

/**
 * The scope of a balance loss: the experts of each layer, or the experts with the same number in all layers together.
 */
export type Balance = "layer" | "together";

/** Options of a decoder. */
export interface DecoderOptions extends Bounds {
  /** Build only these layers, in order. Used to plan a model by representative layers. Default: all layers. */
  readonly layers?: readonly number[] | undefined;
  /**
   * Experts are given instead of chosen: each router has an input `layer{N}.topk_idx`, with the name of its output of
   * choices.
   */
  readonly replay?: boolean;
  /**
   * Return only the results of selected tokens: the input `rows` numbers them, on average at most `perSequence` per
   * sequence (default: 1). Without `candidates`, the result is their `logits`. With `candidates`, it is that many of
   * the largest logits in descending order, as `candidates.logits` and `candidates.ids`; with `logits` too, both. With
   * `normalizer`, also the log-sum-exp of each row's logits, for log-probabilities. Values of other tokens that nothing
   * needs are not computed. With `hidden`, also the normalized rows before the output matrix, of every token. With
   * `predicts`, the model is the layer that predicts a further token: it has the input `hidden`, and that output for
   * the selected tokens.
   */
  readonly next?: {
    readonly candidates?: number | undefined;
    readonly logits?: boolean;
    readonly normalizer?: boolean;
    readonly perSequence?: number | undefined;
    readonly hidden?: boolean;
    readonly predicts?: boolean;
  };
  /** Add the next-token loss. The labels are the input `labels`, with -100 for tokens without a label. */
  readonly training?: {
    /** Weight of the balance loss of experts. 0: no balance loss. */
    readonly auxiliary: number;
    /** Balance experts within each layer, or over all layers together as transformers does. Default: together. */
    readonly balance?: Balance | undefined;
    /** Recompute the inside of attention and expert blocks for gradients instead of storing it. */
    readonly recompute?: boolean | undefined;
    /** Loss of the tokens, instead of the mean cross-entropy of the next tokens. */
    readonly objective?: Objective | undefined;
  };
}

/** Model axes that a loss of tokens uses. */
export type ObjectiveScope = Scope<"token" | "vocab" | "sequence">;

/**
 * A loss of tokens in the language: from the scope of the model, for inputs of its own, the logits and the labels (-100
 * for none). Returns the scalar `loss` and any other outputs, such as metrics or log-probabilities of tokens.
 */
export type Objective = (
  m: ObjectiveScope,
  tokens: {
    readonly logits: Tensor<"token vocab", "f32">;
    readonly labels: Tensor<"token", "i32">;
  },
) => { readonly loss: Tensor<"", "f32">; readonly [output: string]: Tensor };

/** Returns the raw value of a field, for families that check it themselves. */
export function anyField(config: Config, key: string): unknown {
  return record(config, key, config[key]);
}

/** Declares unused fields: they have no effect, or repeat other fields. */
export function ignoreFields(config: Config, keys: readonly string[]): void {
  for (const key of keys) {
    if (key in config) record(config, key, config[key]);
  }
}

/**
 * Returns the value of a field, or undefined if it is missing or null. Throws DataError if the field is missing and the
 * file has a similar key, because the default would then be wrong.
 */
function fieldValue(config: Config, key: string): unknown {
  record(config, key, config[key]);
  // A field that was read under its own name is no other spelling.
  const keys = Object.keys(config).filter((name) => !config[READ]?.has(name));
  const other = config[key] === undefined
    ? otherSpelling(key, keys)
    : undefined;
  if (other !== undefined) requireAbsent(config, other, key);
  return config[key] ?? undefined;
}

/** Rejects another name for the field that an architecture calls `key`. */
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

/** Reads an integer field of at least `min`, and at most the limit of that field. */
export function integerField(
  config: Config,
  key: string,
  options: { readonly default?: number; readonly min?: number } = {},
): number {
  const value = fieldValue(config, key) ?? options.default;
  const min = options.min ?? 1, max = maxOf(key);
  if (
    typeof value !== "number" || !Number.isInteger(value) || value < min ||
    value > max
  ) {
    throw fieldError(key, value, `an integer from ${min} to ${max}`);
  }
  return record(config, key, value);
}

/** Reads a positive number. */
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

/** Reads a positive number. Undefined if the field is null or missing. */
export function optionalField(
  config: Config,
  key: string,
): number | undefined {
  return fieldValue(config, key) === undefined
    ? undefined
    : positiveField(config, key, { default: 1 });
}

/** Reads an integer of at least 1. Undefined if the field is null or missing. */
export function optionalIntegerField(
  config: Config,
  key: string,
): number | undefined {
  return fieldValue(config, key) === undefined
    ? undefined
    : integerField(config, key);
}

/** Reads a boolean field. */
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

/** Reads a field with one of some names. Default: the first one. */
export function choiceField<N extends string>(
  config: Config,
  key: string,
  names: readonly [N, ...N[]],
): N {
  const value = fieldValue(config, key) ?? names[0];
  const name = names.find((name) => name === value);
  if (name !== undefined) return record(config, key, name);
  const wanted = names.map((name) => `'${name}'`).join(" or ");
  throw fieldError(key, value, wanted);
}

/** Rejects a field whose value changes the model in an unsupported way. */
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

/** Rejects `layer_types` that contradict the other fields about a layer's attention. */
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

/** Reads the kinds of layers from the list `key`. `byDefault` gives the kind of unlisted layers. */
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

/** Reads the length of sliding windows. Undefined if the field is null: then no layer has a window. */
export function windowField(
  config: Config,
  options: { readonly default: number },
): number | undefined {
  return anyField(config, "sliding_window") === null
    ? undefined
    : integerField(config, "sliding_window", options);
}

/**
 * Reads the length of sliding windows of a family whose layers with a window differ in other sizes too. Throws
 * DataError if the field is null and a layer has a window, by `hasWindow`.
 */
export function fixedWindowField(
  config: Config,
  { layers, hasWindow, ...options }: {
    readonly layers: number;
    readonly hasWindow: (layer: number) => boolean;
    readonly default: number;
    readonly min?: number;
  },
): number {
  const key = "sliding_window";
  const some = layersWhere(layers, hasWindow).length > 0;
  if (some && anyField(config, key) === null) {
    throw fieldError(key, null, "an integer, because layers have a window");
  }
  return integerField(config, key, options);
}

/** Returns the layers, of `count`, that have a property. */
export function layersWhere(
  count: number,
  has: (layer: number) => boolean,
): readonly number[] {
  return Array.from({ length: count }, (_, layer) => layer).filter(has);
}

/** Returns which layers end a group of `every` layers. Those after the last whole group do, too. */
export function groupEnds(
  { layers, every }: { readonly layers: number; readonly every: number },
): (layer: number) => boolean {
  const grouped = layers - layers % every;
  return (layer) => layer >= grouped || (layer + 1) % every === 0;
}

/** Reads which layers have a sliding window from the list `layer_types`. `byDefault` decides for unlisted layers. */
export function slidingLayers(
  config: Config,
  byDefault: (layer: number) => boolean,
): (layer: number) => boolean {
  const typeOf = layerTypes(
    config,
    ["sliding_attention", "full_attention"],
    (layer) => byDefault(layer) ? "sliding_attention" : "full_attention",
  );
  return (layer) => typeOf(layer) === "sliding_attention";
}

/** Reads an object. Undefined if the field is null or missing. */
export function objectField(config: Config, key: string): Config | undefined {
  const value = fieldValue(config, key);
  if (value === undefined) return undefined;
  if (typeof value !== "object" || Array.isArray(value)) {
    throw fieldError(key, value, "an object");
  }
  return value as Config;
}

/** Reads a configuration inside of another one, with which its fields are recorded. Undefined if it is missing. */
export function innerConfig(config: Config, key: string): Config | undefined {
  const inner = objectField(config, key);
  const read = config[READ];
  return inner && read ? { ...inner, [READ]: read } : inner;
}

/** Returns the configuration of the text model. A model of text and images has it in a separate field. */
export function textConfig(
  config: Config,
): { readonly config: Config; readonly wrapped: boolean } {
  const text = innerConfig(config, "text_config");
  if (text === undefined) return { config, wrapped: false };
  ignoreFields(config, ["tie_word_embeddings"]);
  const { tie_word_embeddings = config["tie_word_embeddings"] } = text;
  return { config: { ...text, tie_word_embeddings }, wrapped: true };
}

/** Reads a list of integers. Undefined if the field is null or missing. */
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

/** Reads a list of numbers or nulls. Empty if the field is null or missing. */
export function numbersField(
  config: Config,
  key: string,
): readonly (number | null)[] {
  const value = anyField(config, key) ?? [];
  if (
    !Array.isArray(value) ||
    value.some((x) => x !== null && !(Number.isFinite(x) && x >= 0))
  ) throw fieldError(key, value, "a list of numbers");
  return value;
}

/** Rejects sizes that are not divisible. */
export function requireMultiple(
  config: { readonly name: string; readonly value: number },
  of: { readonly name: string; readonly value: number },
): void {
  if (config.value % of.value === 0) return;
  throw new DataError(
    `Cannot read config.json: '${config.name}' is ${config.value}, which is no multiple of '${of.name}', ${of.value}. Check the file`,
  );
}

/** Creates the error about a field. */
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
