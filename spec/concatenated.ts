/** Concatenation of typed arrays. */

/** Returns the elements of arrays in one array. A single array is returned itself. */
export function concatenated<A extends Uint8Array | Float32Array>(
  parts: readonly A[],
): A {
  if (parts.length === 1) return parts[0]!;
  const length = parts.reduce((n, part) => n + part.length, 0);
  const all = parts[0] instanceof Float32Array
    ? new Float32Array(length)
    : new Uint8Array(length);
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all as A;
}
