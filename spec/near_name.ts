/** Finds the intended name for an unknown one. */

/** The name among `names` that differs only by case and separators, or by one typo. Undefined: none. */
export function nearName(
  name: string,
  names: Iterable<string>,
): string | undefined {
  const all = [...names];
  const letters = (text: string) => text.replace(/[-_.]/g, "").toLowerCase();
  return all.find((other) => letters(other) === letters(name)) ??
    all.find((other) => isOneSlip(name, other));
}

/** Whether one letter omitted, added, replaced or swapped with its neighbour converts `a` to `b`. */
export function isOneSlip(a: string, b: string): boolean {
  if (a.length > b.length) return isOneSlip(b, a);
  if (b.length - a.length > 1 || a === b) return false;
  let i = 0;
  while (i < a.length && a[i] === b[i]) i++;
  if (a.length < b.length) return a.slice(i) === b.slice(i + 1);
  return a.slice(i + 1) === b.slice(i + 1) ||
    (a[i] === b[i + 1] && a[i + 1] === b[i] &&
      a.slice(i + 2) === b.slice(i + 2));
}
