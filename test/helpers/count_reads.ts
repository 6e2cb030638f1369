/** Measures work by property reads, independent of time. */

/** Returns a copy of plain data that counts property reads at any depth. */
export function countReads<T extends object>(
  data: T,
): { readonly counted: T; readonly reads: () => number } {
  let reads = 0;
  const known = new WeakMap<object, object>();
  const watch = <V>(value: V): V => {
    if (typeof value !== "object" || value === null) return value;
    const found = known.get(value);
    if (found) return found as V;
    const watched = new Proxy(value, {
      get(target, key, receiver) {
        reads++;
        return watch(Reflect.get(target, key, receiver) as unknown);
      },
    });
    known.set(value, watched);
    return watched;
  };
  return { counted: watch(structuredClone(data)), reads: () => reads };
}
