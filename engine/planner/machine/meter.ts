/** What all measurements have in common. */

import type { Machine, MachineDevice } from "../../../spec/machine.ts";

/** Times that everything is measured where nothing else is asked for. */
export const REPETITIONS = 9;

/** How a machine is measured. */
export interface MeasureOptions {
  /** A clock in milliseconds. */
  readonly now: () => number;
  /** Times that everything is measured; the middle counts. Default: `REPETITIONS`. */
  readonly repetitions?: number;
}

/** As much of a warm-up as of the measuring that it is for: few repetitions are asked for by who has no time. */
export function warmUpFor(whole: number, repetitions: number): number {
  return whole * Math.min(1, repetitions / REPETITIONS);
}

/** Something that is open and ready, and can be measured again and again. */
export interface Meter<T> {
  measure(): Promise<T>;
  close(): Promise<void>;
}

/** The middle value. */
export function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[values.length >> 1]!;
}

/** The machine, with each kind of device changed. */
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
