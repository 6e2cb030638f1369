/** JSON objects from files. */

import { DataError } from "../spec/errors.ts";
import { isLfsPointer, LFS_POINTER } from "../spec/lfs_pointer.ts";
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
    value = parsePythonJson(text);
  } catch (error) {
    if (!(error instanceof JsonError)) throw error;
    const state = isLfsPointer(text) ? LFS_POINTER : error.state;
    throw new DataError(`Cannot read '${path}': it ${state}. Copy it again`);
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new DataError(
      `Cannot read '${path}': it is no JSON object. Copy it again`,
    );
  }
  return value as { readonly [key: string]: unknown };
}

/** Escapes and quotes of strings, and numbers that Python writes and JSON does not have. */
const TOKENS = /\\.|"|(-?Infinity|NaN)/gs;

/**
 * Parses JSON that Python may have written. `Infinity` is read as `{"__float__": "Infinity"}`, the encoding of
 * transformers, which survives when it is written as JSON again. Throws JsonError.
 */
function parsePythonJson(text: string): unknown {
  try {
    return parseJson(text);
  } catch (error) {
    let isInString = false;
    const encoded = text.replace(TOKENS, (found, number?: string) => {
      if (found === '"') isInString = !isInString;
      return isInString || number === undefined
        ? found
        : `{"__float__":"${number}"}`;
    });
    if (encoded === text) throw error;
    return parseJson(encoded);
  }
}
