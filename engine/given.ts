/** Selects given options. */

/** The properties of `options` among `keys` that are not undefined. */
export function given<T extends object, K extends keyof T>(
  options: T,
  keys: readonly K[],
): { [P in K]?: Exclude<T[P], undefined> } {
  return Object.fromEntries(
    keys.flatMap((key) =>
      options[key] === undefined ? [] : [[key, options[key]]]
    ),
  ) as { [P in K]?: Exclude<T[P], undefined> };
}
