/** Compares values of documents. */

/** Whether two JSON values are equal, ignoring the order of fields and undefined ones. 0 and -0 differ. */
export function isSame(a: unknown, b: unknown): boolean {
  if (Object.is(a, b)) return true;
  if (typeof a !== "object" || typeof b !== "object" || !a || !b) return false;
  if (Array.isArray(a) !== Array.isArray(b)) return false;
  for (const key in a) {
    if (!isSame(fieldOf(a, key), fieldOf(b, key))) return false;
  }
  for (const key in b) {
    if (fieldOf(a, key) === undefined && fieldOf(b, key) !== undefined) {
      return false;
    }
  }
  return true;
}

/** A field of an object, not of its prototype: names of fields may be any text. */
function fieldOf(value: object, key: string): unknown {
  return Object.hasOwn(value, key)
    ? (value as { readonly [key: string]: unknown })[key]
    : undefined;
}
