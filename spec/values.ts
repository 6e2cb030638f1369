/** Types of document fields. Their tags are keywords of JSON Schema, which `scripts/schemas.mjs` reads. */

/**
 * An integer.
 *
 * @integer
 */
export type Integer = number;

/**
 * A size, a count or an index.
 *
 * @integer
 * @minimum 0
 * @maximum Number.MAX_SAFE_INTEGER
 */
export type Natural = number;

/**
 * A size or a count of at least 1.
 *
 * @integer
 * @minimum 1
 * @maximum Number.MAX_SAFE_INTEGER
 */
export type Count = number;

/**
 * A number of ranks.
 *
 * @integer
 * @minimum 1
 * @maximum MAX_RANKS
 */
export type RankCount = number;

/**
 * A u32.
 *
 * @integer
 * @minimum 0
 * @maximum 0xffffffff
 */
export type Word = number;

/**
 * A duration or another quantity that may be 0.
 *
 * @minimum 0
 */
export type NonNegative = number;

/**
 * A rate or another quantity above 0.
 *
 * @exclusiveMinimum 0
 */
export type PositiveNumber = number;

/**
 * A part of a quantity, above 0 and at most 1.
 *
 * @exclusiveMinimum 0
 * @maximum 1
 */
export type Share = number;

/**
 * A name. Names are printed on terminals and used as keys: no control characters, and not `__proto__`.
 *
 * @pattern ^(?!__proto__$)[^\u0000-\u001f\u007f]+$
 */
export type Name = string;

/**
 * A name in a kernel.
 *
 * @pattern ^[A-Za-z][A-Za-z0-9_]*$
 */
export type Identifier = string;

/**
 * Text on one line, without control characters.
 *
 * @pattern ^[^\u0000-\u001f\u007f]*$
 */
export type Line = string;

/**
 * A list of at most 64 items, which is cheap to search.
 *
 * @maxItems 64
 */
export type Short<T> = readonly T[];

/**
 * A list of 1 to 64 items.
 *
 * @minItems 1
 * @maxItems 64
 */
export type ShortNonEmpty<T> = readonly T[];

/**
 * A list of at least one item.
 *
 * @minItems 1
 */
export type NonEmpty<T> = readonly T[];

/**
 * A list of at least two items.
 *
 * @minItems 2
 */
export type Several<T> = readonly T[];

/**
 * An object of at most 64 fields.
 *
 * @maxProperties 64
 */
export type ShortRecord<T> = { readonly [name: string]: T };

/**
 * The name of an axis of a model, with its block: `layers.3.moe.expert`.
 *
 * @pattern ^([A-Za-z0-9_.-]{1,200}\.)?[A-Za-z_][A-Za-z0-9_]{0,99}$
 */
export type AxisName = string;

/**
 * At most 64 axes.
 *
 * @maxItems 64
 */
export type AxisNames = readonly AxisName[];

/**
 * At most 64 different axes.
 *
 * @maxItems 64
 * @uniqueItems
 */
export type AxisSet = readonly AxisName[];

/**
 * A length, position or offset along an axis of a model.
 *
 * @integer
 * @minimum 0
 * @maximum MAX_AXIS
 */
export type AxisLength = number;

/**
 * A length of at least 1 along an axis of a model.
 *
 * @integer
 * @minimum 1
 * @maximum MAX_AXIS
 */
export type AxisCount = number;

/**
 * A small number, such as that of the chosen experts of a token.
 *
 * @integer
 * @minimum 1
 * @maximum 64
 */
export type Few = number;

/**
 * A name or a short text.
 *
 * @maxLength 1024
 */
export type ShortText = string;
