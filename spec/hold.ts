/** Holds what was parsed against a JSON Schema of this package. */

import { Ajv, type ErrorObject, type ValidateFunction } from "ajv";
import type { Schema } from "./schema.ts";

const compiled = new Map<Schema, ValidateFunction>();

/** What does not fit a schema; empty if all does. A schema is compiled once. */
export function schemaErrors(
  value: unknown,
  schema: Schema,
): readonly ErrorObject[] {
  // Infinities are legal constants of kernels, so numbers need not be finite; all sizes have a maximum.
  const validate = compiled.get(schema) ?? new Ajv({
    discriminator: true,
    strictNumbers: false,
    allowUnionTypes: true,
    strictTuples: false,
    // The schema is ours and a test holds it against the meta-schema: no need to compile that one too.
    meta: false,
    validateSchema: false,
    code: { optimize: false },
  }).compile(schema);
  compiled.set(schema, validate);
  return validate(value) ? [] : validate.errors ?? [];
}
