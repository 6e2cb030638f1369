/** The error for a field of config.json that GGUF files have no key for. */

import { DataError } from "../../spec/errors.ts";
import { shown } from "../../spec/shown.ts";

/** Returns the error for the value of a field in files of architecture `name`. */
export function unrepresentable(
  name: string,
  field: string,
  value: unknown,
): DataError {
  return new DataError(
    `Cannot write a GGUF file: '${field}' is ${
      shown(JSON.stringify(value))
    }, and files of architecture '${name}' cannot represent it. Use --to fp8 or --to mxfp4 with a folder for --out`,
  );
}
