/** Common parts of measurements. */

import type { Machine, MachineDevice } from "../../../spec/machine.ts";

/** Default number of repetitions. */
export const REPETITIONS = 9;

/** Options of measurements. */
export interface MeasureOptions {
  /** A clock in milliseconds. */
  readonly now: () => number;
  /** Repetitions of each measurement; the median counts. Default: `REPETITIONS`. */
  readonly repetitions?: number;
  /** Time of `now` after which measurements are repeated only `FEWEST` times. Default: none. */
  readonly deadline?: number;
  /**
   * Receives the spread of the times of a measurement: the range of their middle half, or of few times, over their
   * median.
   */
  readonly onSpread?: (what: string, spread: number) => void;
}

/** Repetitions after the deadline. */
const FEWEST = 3;

/** Whether a measurement is repeated, after `done` repetitions. */
export function isRepeated(
  done: number,
  { now, deadline = Infinity, repetitions = REPETITIONS }: MeasureOptions,
): boolean {
  return done <
    (now() < deadline ? repetitions : Math.min(FEWEST, repetitions));
}

/** The median of times, whose spread is reported. */
export function reportedMedian(
  times: readonly number[],
  what: string,
  { onSpread }: Pick<MeasureOptions, "onSpread">,
): number {
  const sorted = [...times].sort((a, b) => a - b);
  const outside = Math.floor(sorted.length / 4);
  const middle = sorted.slice(outside, sorted.length - outside);
  onSpread?.(what, (middle.at(-1)! - middle[0]!) / median(times));
  return median(times);
}

/** Warm-up proportional to the number of repetitions. */
export function warmUpFor(full: number, repetitions: number): number {
  return full * Math.min(1, repetitions / REPETITIONS);
}

/** An open device or link that can be measured repeatedly. */
export interface Meter<T> {
  measure(): Promise<T>;
  close(): Promise<void>;
}

/** The median. */
export function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[values.length >> 1]!;
}

/** The machine with each kind of device changed. */
export function withDevices(
  machine: Machine,
  change: (device: MachineDevice) => MachineDevice,
): Machine {
  const devices = Object.entries(machine.devices).map(([kind, device]) => [
    kind,
    change(device),
  ]);
  return { ...machine, devices: Object.fromEntries(devices) };
}
