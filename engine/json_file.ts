/** JSON objects from files. */

import { DataError } from "../spec/errors.ts";
import { JsonError, parseJson } from "../spec/parse_json.ts";
import type { FileSystem } from "./files.ts";

/** The object in a JSON file. Throws DataError if it contains none. */
export async function readJsonObject(
  path: string,
  files: FileSystem,
): Promise<{ readonly [key: string]: unknown }> {
  return parseJsonObject(await files.readText(path), path);
}

/** The object in the text of a JSON file. Throws DataError if it contains none. */
export function parseJsonObject(
  text: string,
  path: string,
): { readonly [key: string]: unknown } {
  let value: unknown;
  try {
    value = parseJson(text);
  } catch (error) {
    if (!(error instanceof JsonError)) throw error;
    throw new DataError(
      `Cannot read '${path}': it ${error.state}. Copy it again`,
    );
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new DataError(
      `Cannot read '${path}': it is no JSON object. Copy it again`,
    );
  }
  return value as { readonly [key: string]: unknown };
}
