/** A family of models: the reader of its config.json and the builder of its decoder. */

import { DataError, type Model, setExample } from "../compiler/mod.ts";
import {
  type Config,
  type DecoderOptions,
  type Fields,
  recordFields,
} from "./config.ts";
import type { Decoder } from "./decoder.ts";
import { changesNothing } from "./field_names.ts";

/** The parameter of `defineFamily`. */
export interface FamilyDefinition<C extends Decoder> {
  /** Names of the family in `architectures` of config.json. */
  readonly architectures: readonly string[];
  /** Reads config.json with `integerField`, `groupedFields` and similar functions. */
  config(config: Config): C;
  /** Builds the decoder with `decoderModel`, or another model with the same inputs and outputs. */
  build(config: C, options: DecoderOptions): Model;
  /** Prefixes of tensors that a checkpoint may contain and the model does not use. Default: none. */
  unused?(config: C): readonly string[];
}

/** A family of models, as `defineFamily` returns it. */
export interface Family<C extends Decoder = Decoder>
  extends Readonly<FamilyDefinition<C>> {}

/** The model of a config.json, ready to be built with bounds. */
export interface PublishedModel {
  readonly architecture: string;
  readonly decoder: Decoder;
  readonly build: (options: DecoderOptions) => Model;
  /** Prefixes of tensors that a checkpoint may contain and the model does not use. */
  readonly unused: readonly string[];
  /** A complete config.json: the fields that the family read, with its defaults. */
  readonly fields: Fields;
  /** Fields of config.json that the family did not read and that may change the model. */
  readonly unread: readonly string[];
}

const FAMILIES = new WeakSet<object>();

/**
 * Defines a family of models. A file that exports one is accepted as `--family FILE.ts` by `generate`, `chat`, `run`,
 * `train` and `plan`.
 *
 * Throws DataError if `architectures` is empty.
 *
 * @example
 * ```ts
 * export const family = defineFamily({
 *   architectures: ["MineForCausalLM"],
 *   config: (config) => groupedFields(config, DEFAULTS, NAMES),
 *   build: (config, options) => decoderModel(config, blocks(config), options),
 * });
 * ```
 */
export function defineFamily<C extends Decoder>(
  definition: FamilyDefinition<C>,
): Family<C> {
  const { architectures } = definition;
  if (
    architectures.length === 0 || !architectures.every((name) => name !== "")
  ) {
    throw new DataError(
      "Cannot define a family: 'architectures' has no name. Give the name that config.json uses, such as 'MineForCausalLM'",
    );
  }
  const family: Family<C> = Object.freeze({ ...definition });
  FAMILIES.add(family);
  setExample(family, () => exampleModel(family));
  return family;
}

/** Builds a small model from the family's default sizes. Undefined if the family requires sizes from config.json. */
function exampleModel<C extends Decoder>(
  family: Family<C>,
): Model | undefined {
  try {
    return family.build(family.config({}), {
      maxTokens: 16,
      maxSequences: 1,
      maxContext: 16,
    });
  } catch (error) {
    if (error instanceof DataError) return undefined;
    throw error;
  }
}

/** Returns whether `defineFamily` made a value. */
export function isFamily(value: unknown): value is Family {
  return typeof value === "object" && value !== null && FAMILIES.has(value);
}

/** Reads a config.json as a family does. Throws DataError for a field that the family does not accept. */
export function readFamily(
  family: Family,
  architecture: string,
  json: Config,
): PublishedModel {
  const { config, fields } = recordFields(json);
  const decoder = family.config(config);
  checkDecoder(decoder);
  return {
    architecture,
    decoder,
    build: (options) => family.build(decoder, options),
    unused: family.unused?.(decoder) ?? [],
    fields,
    unread: Object.keys(json).filter((key) =>
      !fields.has(key) && !changesNothing(key)
    ),
  };
}

function checkDecoder({ experts, expertsPerToken, headDim }: Decoder): void {
  if (expertsPerToken > experts) {
    throw new DataError(
      `Cannot read config.json: 'num_experts_per_tok' is ${expertsPerToken}, and there are ${experts} experts. Check the file`,
    );
  }
  if (headDim % 2 !== 0) {
    throw new DataError(
      `Cannot read config.json: heads have ${headDim} elements, an odd number. Check the file`,
    );
  }
}
