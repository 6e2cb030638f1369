/** Made-up numbers. */

/** Numbers that repeat nowhere. */
export function waves(count: number, from = 0): number[] {
  return Array.from(
    { length: count },
    (_, i) => Math.sin((i + from) ** 2 + from),
  );
}
