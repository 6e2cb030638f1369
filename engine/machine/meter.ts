/** What all measurements have in common. */

import type { Machine, MachineDevice } from "../../spec/machine.ts";

/** How a machine is measured. */
export interface MeasureOptions {
  /** A clock in milliseconds. */
  readonly now: () => number;
  /** Times that everything is measured; the middle counts. Default: 9. */
  readonly repetitions?: number;
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
