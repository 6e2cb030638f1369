/** Bodies of requests: JSON in UTF-8 with limits of size and depth. */

import type { Connection } from "./connection.ts";
import { RequestError } from "./errors.ts";

/** Maximum nesting depth of a body. */
const DEPTH = 64;

/**
 * Reads the JSON object in a request's body. Throws RequestError for anything else, and for more than `maxBytes` bytes.
 */
export async function readBody(
  connection: Connection,
  { type, encoding, maxBytes }: {
    /** The content type. */
    readonly type: string;
    /** The content encoding. Empty: none. */
    readonly encoding: string;
    readonly maxBytes: number;
  },
): Promise<{ readonly [field: string]: unknown }> {
  if (!/^application\/json\s*(;|$)/i.test(type)) {
    throw new RequestError(
      "Cannot read the request: its body is not JSON. Send the header 'Content-Type: application/json'",
      { kind: "media" },
    );
  }
  if (!/^(identity)?$/i.test(encoding)) {
    throw new RequestError(
      "Cannot read the request: its body is compressed. Send it without the header 'Content-Encoding'",
      { kind: "media" },
    );
  }
  const text = decode(await readBytes(connection, maxBytes));
  checkDepth(text);
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new RequestError(
      `Cannot read the request: ${
        error instanceof Error ? error.message : error
      }. Send a JSON object`,
    );
  }
  if (typeof value === "object" && value !== null && !Array.isArray(value)) {
    return value as { readonly [field: string]: unknown };
  }
  throw new RequestError(
    "Cannot read the request: its body is no object. Send a JSON object",
  );
}

async function readBytes(
  connection: Connection,
  maxBytes: number,
): Promise<Uint8Array> {
  const bytes = await connection.read(maxBytes);
  if (bytes === "too large") {
    throw new RequestError(
      `Cannot read the request: its body has more than ${maxBytes} bytes. Send less, or raise --max-body`,
      { kind: "size" },
    );
  }
  if (bytes === "closed") {
    throw new RequestError(
      "Cannot read the request: the client closed the connection. Send all of the body",
      { kind: "closed" },
    );
  }
  return bytes;
}

function decode(bytes: Uint8Array): string {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw new RequestError(
      "Cannot read the request: its body is not UTF-8. Encode it as UTF-8",
    );
  }
}

/** Rejects text whose brackets outside of strings are nested too deeply. */
function checkDepth(text: string): void {
  let [depth, inString] = [0, false];
  for (let i = 0; i < text.length; i++) {
    const character = text[i];
    if (inString) {
      if (character === "\\") i++;
      else if (character === '"') inString = false;
    } else if (character === '"') inString = true;
    else if (character === "{" || character === "[") {
      if (++depth > DEPTH) {
        throw new RequestError(
          `Cannot read the request: its JSON is nested deeper than ${DEPTH} levels. Send a flatter object`,
        );
      }
    } else if (character === "}" || character === "]") depth--;
  }
}
