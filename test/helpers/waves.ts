/** Deterministic numbers. */

/** Returns `count` aperiodic numbers between -1 and 1. */
export function waves(count: number, from = 0): number[] {
  return Array.from(
    { length: count },
    (_, i) => Math.sin((i + from) ** 2 + from),
  );
}
