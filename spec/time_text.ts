/** Times and rates as display text. */

import type { MachineDevice } from "./machine.ts";
import type { Operands } from "./numerics.ts";

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
 * The rates that predict arithmetic and memory: `f32 arithmetic at 41.3 T multiply-adds/s, without matrix units (data
 * sheet: bf16 82.6 T), and memory at 92 % of 1.01 TB/s`. `operands`: those of matmuls of many rows and of attention.
 */
export function ratesText(
  { multiplyAdds, bandwidth, efficiency = 1, matrix = {} }: Pick<
    MachineDevice,
    "multiplyAdds" | "bandwidth" | "efficiency" | "matrix"
  >,
  operands: Operands = "f32",
): string {
  const tera = (rate: number) => Number((rate / 1e12).toPrecision(3));
  const rates = Object.entries(matrix).map(([dtype, rate]) =>
    `${dtype} ${tera(rate)} T`
  );
  const share = efficiency === 1 ? "" : `${Math.round(100 * efficiency)} % of `;
  const sheet = rates.length === 0 ? "" : ` (data sheet: ${rates.join(", ")})`;
  const units = operands === "f16" && matrix.bf16 !== undefined
    ? `, matmuls of many rows and attention with f16 operands on matrix units at ${
      tera(matrix.bf16)
    } T (data sheet)`
    : `, without matrix units${sheet}`;
  return `f32 arithmetic at ${
    tera(multiplyAdds)
  } T multiply-adds/s${units}, and memory at ${share}${tera(bandwidth)} TB/s`;
}
