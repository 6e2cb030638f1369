/** Constants of kernel texts. */

/** The lowest f32: below every score and logit. */
export const LOWEST = -3.4028234663852886e38;

/** The numbers from 0 below `count`, with step `step`. */
export function range(count: number, step = 1): number[] {
  return Array.from({ length: count / step }, (_, i) => i * step);
}
