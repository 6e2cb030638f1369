/** Deterministic numbers. */

/** The longest numbers so far, by `from`: sines take longer than most uses. */
const known = new Map<number, number[]>();

/** Returns `count` aperiodic numbers between -1 and 1. */
export function waves(count: number, from = 0): number[] {
  const all = known.get(from) ?? [];
  known.set(from, all);
  for (let i = all.length; i < count; i++) {
    all.push(Math.sin((i + from) ** 2 + from));
  }
  return all.slice(0, count);
}
