/** Hashes of data. */

/** Maximum bytes per hash call: WebCrypto accepts less than 2 GiB. */
const MAX_BYTES = 2 ** 30;

/**
 * The SHA-256 of a text or of the bytes of an array, in hexadecimal. For more than 1 GiB, the hash of the hashes of its
 * parts of 1 GiB.
 */
export async function sha256(data: string | ArrayBufferView): Promise<string> {
  const bytes = typeof data === "string"
    ? new TextEncoder().encode(data)
    : new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  if (bytes.length > MAX_BYTES) {
    let parts = "";
    for (let from = 0; from < bytes.length; from += MAX_BYTES) {
      parts += await sha256(bytes.subarray(from, from + MAX_BYTES));
    }
    return await sha256(parts);
  }
  const hash = await crypto.subtle.digest(
    "SHA-256",
    bytes as Uint8Array<ArrayBuffer>,
  );
  return Array.from(
    new Uint8Array(hash),
    (byte) => byte.toString(16).padStart(2, "0"),
  ).join("");
}
