/** Validates parsed values against a JSON Schema of this package. */

import {
  Ajv,
  type ErrorObject,
  type Options,
  type ValidateFunction,
} from "ajv";
import type { Schema } from "./schema.ts";

/** Schema errors; empty if there are none. */
export interface Holds {
  (value: unknown): readonly ErrorObject[];
  readonly schema: Schema;
}

/** Options of schema compilation. scripts/validators.mjs uses the same for bundles. */
export const OPTIONS: Options = {
  discriminator: true,
  // Infinities are legal constants of kernels, so numbers need not be finite; all sizes have a maximum.
  strictNumbers: false,
  allowUnionTypes: true,
  strictTuples: false,
  // The schema is ours, and a test validates it against the meta-schema, which need not be compiled here.
  meta: false,
  validateSchema: false,
  code: { optimize: false },
};

/** Validates values against a schema, which is compiled on first use. */
export function holdsOf(schema: Schema): Holds {
  let validate: ValidateFunction | undefined;
  const holds = (value: unknown) => {
    validate ??= new Ajv(OPTIONS).compile(schema);
    return validate(value) ? [] : validate.errors ?? [];
  };
  return Object.assign(holds, { schema });
}
