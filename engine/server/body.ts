/** Bodies of requests: JSON in UTF-8 with limits of size and depth. */

import { RequestError } from "./errors.ts";

/** Maximum nesting depth of a body. */
const DEPTH = 64;

/** Reads the JSON object in a request's body. Throws RequestError for anything else, and for more than `maxBytes` bytes. */
export async function readBody(
  request: Request,
  maxBytes: number,
): Promise<{ readonly [field: string]: unknown }> {
  const type = request.headers.get("content-type") ?? "";
  if (!/^application\/json\s*(;|$)/i.test(type)) {
    throw new RequestError(
      "Cannot read the request: its body is not JSON. Send the header 'Content-Type: application/json'",
      { kind: "media" },
    );
  }
  const text = decode(await readBytes(request, maxBytes));
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
  request: Request,
  maxBytes: number,
): Promise<Uint8Array> {
  const tooLarge = () =>
    new RequestError(
      `Cannot read the request: its body has more than ${maxBytes} bytes. Send less, or raise --max-body`,
      { kind: "size" },
    );
  if (Number(request.headers.get("content-length") ?? 0) > maxBytes) {
    throw tooLarge();
  }
  const parts: Uint8Array[] = [];
  let size = 0;
  try {
    for await (const part of request.body ?? []) {
      size += part.length;
      if (size > maxBytes) throw tooLarge();
      parts.push(part);
    }
  } catch (error) {
    if (error instanceof RequestError) throw error;
    throw new RequestError(
      "Cannot read the request: the client closed the connection. Send all of the body",
      { kind: "closed" },
    );
  }
  const bytes = new Uint8Array(size);
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
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
