/** Caches with a maximum size. */

/** Returns the cached value of a key, or creates it. A full cache is emptied first. */
export function cachedIn<K, V>(
  cache: Map<K, V>,
  key: K,
  { max, create }: { readonly max: number; readonly create: () => V },
): V {
  const known = cache.get(key);
  if (known !== undefined) return known;
  const value = create();
  if (cache.size >= max) cache.clear();
  cache.set(key, value);
  return value;
}
