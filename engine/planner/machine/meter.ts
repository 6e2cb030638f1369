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
}

/** Warm-up proportional to the number of repetitions. */
export function warmUpFor(whole: number, repetitions: number): number {
  return whole * Math.min(1, repetitions / REPETITIONS);
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
