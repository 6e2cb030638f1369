/** JSON Schemas as data. */

/** A JSON Schema, or a part of one. */
export type Schema = { readonly [keyword: string]: unknown };

/** Names are printed on terminals and used as keys: no control characters, and not `__proto__`. */
const NAME = "^(?!__proto__$)[^\\u0000-\\u001f\\u007f]+$";

/** A flag that is omitted if false. */
export const yes: Schema = { const: true };

/** One of several words or numbers. */
export function oneOf(...values: readonly (string | number)[]): Schema {
  return { enum: values };
}

/** An object with exactly these fields. */
export function closed(
  required: { readonly [name: string]: Schema },
  optional: { readonly [name: string]: Schema } = {},
): Schema {
  return {
    type: "object",
    properties: { ...required, ...optional },
    required: Object.keys(required),
    additionalProperties: false,
  };
}

/** An object from names to values of one type. */
export function record(value: Schema): Schema {
  return {
    type: "object",
    propertyNames: { type: "string", pattern: NAME },
    additionalProperties: value,
  };
}

/** A schema with some of its properties replaced or added. */
export function withProperties(
  schema: Schema,
  properties: (known: { readonly [name: string]: Schema }) => Schema,
): Schema {
  const known = schema["properties"] as { readonly [name: string]: Schema };
  return { ...schema, properties: { ...known, ...properties(known) } };
}

/** A union of closed objects distinguished by a field. Default: `op`. */
export function union(
  variants: { readonly [op: string]: Schema },
  field = "op",
): Schema {
  return {
    type: "object",
    required: [field],
    discriminator: { propertyName: field },
    oneOf: Object.values(variants),
  };
}
