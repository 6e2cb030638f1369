/** Caches with a maximum size, or for as long as an object lives. */

/**
 * Returns the cached value of a key, or creates it. `max`: entries; a full cache is emptied first. Default: unlimited.
 */
export function cachedIn<K, V>(
  cache: Map<K, V>,
  key: K,
  { max = Infinity, create }: {
    readonly max?: number;
    readonly create: () => V;
  },
): V {
  const known = cache.get(key);
  if (known !== undefined) return known;
  const value = create();
  if (cache.size >= max) cache.clear();
  cache.set(key, value);
  return value;
}

/** Returns the cached value of an object and a key, or creates it. `max`: of an object. Default: unlimited. */
export function cachedWith<O extends object, V>(
  cache: WeakMap<O, Map<string, V>>,
  object: O,
  { key, max = Infinity, create }: {
    readonly key: string;
    readonly max?: number;
    readonly create: () => V;
  },
): V {
  let values = cache.get(object);
  if (!values) cache.set(object, values = new Map());
  return cachedIn(values, key, { max, create });
}
