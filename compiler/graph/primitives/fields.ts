/** Parameter fields in documents of models. */

import type { Schema } from "../../../spec/document/schema.ts";

/** A number. */
export const number: Schema = { type: "number" };

/** A bool. */
export const flag: Schema = { type: "boolean" };

/** The name of an axis. */
export const axis: Schema = {
  type: "string",
  pattern: "^([A-Za-z0-9_.-]{1,200}\\.)?[A-Za-z_][A-Za-z0-9_]{0,99}$",
};
