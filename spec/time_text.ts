/** Times and rates as display text. */

import type { MachineDevice } from "./machine.ts";

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

/**
 * The rates that predict arithmetic and memory: `f32 arithmetic at 41.3 T multiply-adds/s, without matrix units (data sheet: bf16 82.6 T), and
 * memory at 1.01 TB/s`.
 */
export function ratesText(
  { multiplyAdds, bandwidth, matrix = {} }: Pick<
    MachineDevice,
    "multiplyAdds" | "bandwidth" | "matrix"
  >,
): string {
  const tera = (rate: number) => Number((rate / 1e12).toPrecision(3));
  const rates = Object.entries(matrix).map(([dtype, rate]) =>
    `${dtype} ${tera(rate)} T`
  );
  const sheet = rates.length === 0 ? "" : ` (data sheet: ${rates.join(", ")})`;
  return `f32 arithmetic at ${
    tera(multiplyAdds)
  } T multiply-adds/s, without matrix units${sheet}, and memory at ${
    tera(bandwidth)
  } TB/s`;
}
