/** Holds what was parsed against a JSON Schema of this package. */

import {
  Ajv,
  type ErrorObject,
  type Options,
  type ValidateFunction,
} from "ajv";
import type { Schema } from "./schema.ts";

/** What does not fit a schema; empty if all does. */
export interface Holds {
  (value: unknown): readonly ErrorObject[];
  readonly schema: Schema;
}

/** How schemas are understood. scripts/validators.mjs does the same when it bundles. */
export const OPTIONS: Options = {
  discriminator: true,
  // Infinities are legal constants of kernels, so numbers need not be finite; all sizes have a maximum.
  strictNumbers: false,
  allowUnionTypes: true,
  strictTuples: false,
  // The schema is ours and a test holds it against the meta-schema: no need to compile that one too.
  meta: false,
  validateSchema: false,
  code: { optimize: false },
};

/** Holds values against a schema, which is compiled at the first of them. */
export function holdsOf(schema: Schema): Holds {
  let validate: ValidateFunction | undefined;
  const holds = (value: unknown) => {
    validate ??= new Ajv(OPTIONS).compile(schema);
    return validate(value) ? [] : validate.errors ?? [];
  };
  return Object.assign(holds, { schema });
}
