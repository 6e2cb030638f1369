/** Parts of messages. */

/** `'a', 'b'`, or `none`. */
export function quoteAll(names: readonly string[]): string {
  return names.length ? names.map((name) => `'${name}'`).join(", ") : "none";
}
