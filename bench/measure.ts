/** Repetitions, medians, and their format. */

import { cpus } from "node:os";
import process from "node:process";

/** Returns the median. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1
    ? sorted[middle]!
    : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

/** Processor time of this process in ms: other work on the machine affects it less than the clock. */
export function coresMs(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e3;
}

/** Returns the milliseconds of a piece of work. */
export async function milliseconds(
  work: () => Promise<unknown> | void,
): Promise<number> {
  const start = performance.now();
  await work();
  return performance.now() - start;
}

/** Returns the times of several pieces of work in ms, interleaved so that disturbances affect all of them. */
export async function interleaved<K extends string>(
  work: { readonly [_ in K]: () => Promise<unknown> | void },
  { repetitions, warmUp = 1 }: { repetitions: number; warmUp?: number },
): Promise<{ [_ in K]: number[] }> {
  const names = Object.keys(work) as K[];
  const times = Object.fromEntries(
    names.map((name) => [name, [] as number[]]),
  ) as { [_ in K]: number[] };
  for (let i = -warmUp; i < repetitions; i++) {
    for (const name of names) {
      const time = await milliseconds(work[name]);
      if (i >= 0) times[name].push(time);
    }
  }
  return times;
}

/** Formats times: `median ms (minimum to maximum, n runs)`. */
export function describe(times: readonly number[]): string {
  const [min, max] = [Math.min(...times), Math.max(...times)];
  return `${median(times).toFixed(2)} ms (${min.toFixed(2)} to ${
    max.toFixed(2)
  }, ${times.length} runs)`;
}

/** Formats a rate per second: tokens, or 10^9 operations or bytes. */
export function rateIn(
  { unit, amount }: { readonly unit: string; readonly amount: number },
  ms: number,
): number {
  return unit === "tokens/s" ? amount / ms * 1e3 : amount / ms / 1e6;
}

/** Describes the machine. */
export function machine(): string {
  const all = cpus();
  return `${all.length} cores (${
    all[0]?.model.trim() ?? "unknown"
  }), Node ${process.version}`;
}
