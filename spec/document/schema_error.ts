/** The schema error of a document, in words. */

import type { ErrorObject } from "ajv";
import { shown } from "../shown.ts";

/** An error at a place of a document. */
export interface SchemaError {
  /** JSON pointer into the document. */
  readonly path: string;
  /** The problem there, as a predicate: `has no field 'steps'`. */
  readonly state: string;
}

/**
 * The deepest of some schema errors; undefined if there are none. All branches of a union are listed, and the one that
 * matched furthest is the intended one.
 */
export function deepestError(
  errors: readonly ErrorObject[],
): SchemaError | undefined {
  const [first, ...rest] = errors;
  if (first === undefined) return undefined;
  const deepest = rest.reduce(
    (best, error) =>
      error.instancePath.length > best.instancePath.length ? error : best,
    first,
  );
  const path = deepest.instancePath;
  const there = errors.filter((error) => error.instancePath === path);
  // The value has the type of a branch that reports something else.
  const error = there.find(({ keyword }) => !TYPE_KEYWORDS.has(keyword)) ??
    deepest;
  if (error.keyword !== "type") return { path, state: stateOf(error) };
  // Each branch of a union names its own type.
  const types = there
    .filter(({ keyword }) => keyword === "type")
    .flatMap(({ params }): string[] => params["type"])
    .map((type) => type === "null" ? type : `${article(type)} ${type}`);
  return { path, state: `must be ${[...new Set(types)].join(" or ")}` };
}

function article(noun: string): string {
  return /^[aeiou]/.test(noun) ? "an" : "a";
}

/** Keywords of errors that a branch of a union reports if the value has another type. */
const TYPE_KEYWORDS: ReadonlySet<string> = new Set(["type", "anyOf"]);

/**
 * The error as the subject and predicate of a sentence: `'/hosts' has no field 'devices'`. Long paths are shortened.
 */
export function errorText({ path, state }: SchemaError): string {
  const where = path.length > 100 ? `${path.slice(0, 100)}…` : path;
  return `'${where || "/"}' ${state}`;
}

/** States by keyword of JSON Schema; others are Ajv's message. */
const STATES: {
  readonly [keyword: string]: (params: ErrorObject["params"]) => string;
} = {
  additionalProperties: ({ additionalProperty }) =>
    `has an unknown field '${additionalProperty}'`,
  required: ({ missingProperty }) => `has no field '${missingProperty}'`,
  discriminator: ({ tag, tagValue }) =>
    `has an unknown '${tag}': ${JSON.stringify(tagValue)}`,
  enum: ({ allowedValues }) =>
    `must be one of ${
      (allowedValues as unknown[]).map((value) => `'${value}'`).join(", ")
    }`,
  const: ({ allowedValue }) => `must be ${JSON.stringify(allowedValue)}`,
  pattern: () => "is not a legal name",
  minimum: ({ limit }) => `must be at least ${limit}`,
  maximum: ({ limit }) => `must be at most ${limit}`,
  minItems: ({ limit }) => limit === 1 ? "is empty" : `needs ${limit} items`,
  maxItems: ({ limit }) => `has more than ${limit} items`,
  minLength: ({ limit }) =>
    limit === 1 ? "is empty" : `needs ${limit} characters`,
  maxLength: ({ limit }) => `has more than ${limit} characters`,
  maxProperties: ({ limit }) => `has more than ${limit} fields`,
};

function stateOf(
  { keyword, params, message, propertyName }: ErrorObject,
): string {
  return propertyName !== undefined
    ? `has an illegal name '${shown(propertyName)}'`
    : STATES[keyword]?.(params) ?? message ?? keyword;
}
