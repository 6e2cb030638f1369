/** Times and rates as display text. */

/** `12.30 ms` */
export function timeText(seconds: number): string {
  return seconds >= 1
    ? `${seconds.toFixed(2)} s`
    : seconds >= 1e-3
    ? `${(seconds * 1e3).toFixed(2)} ms`
    : `${(seconds * 1e6).toFixed(1)} us`;
}

/** `47,919 tokens/s` */
export function rateText(tokensPerSecond: number): string {
  const digits = tokensPerSecond >= 1000 ? 0 : 1;
  return `${
    tokensPerSecond.toFixed(digits).replace(/\B(?=(\d{3})+$)/g, ",")
  } tokens/s`;
}
