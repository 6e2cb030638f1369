/** What computes for a rank: a GPU, or the CPU engine. The executor knows only this interface. */

import type { PlanKernel } from "../spec/plan.ts";

/** When a launch ran on the device, in nanoseconds of the device's clock. */
export interface LaunchTiming {
  readonly start: number;
  readonly end: number;
}

/** Memory of a device. Zero when created. */
export interface DeviceBuffer {
  readonly bytes: number;
}

/**
 * A logical device. `write`, `launch` and `copy` take effect in the order of the calls; `read` sees all of them.
 * Nothing waits except `prepare`, `read` and `idle`. Byte offsets and lengths are multiples of 4.
 */
export interface Device {
  readonly kind: "gpu" | "cpu";
  /** Adapter name, for people. */
  readonly name: string;
  readonly limits: { readonly [limit: string]: number };
  /** Make kernels ready to launch, by name; `progress` is called as each becomes ready. */
  prepare(
    kernels: { readonly [name: string]: PlanKernel },
    progress?: (done: number, total: number) => void,
  ): Promise<void>;
  createBuffer(bytes: number, label: string): DeviceBuffer;
  write(buffer: DeviceBuffer, offset: number, data: Uint8Array): void;
  /**
   * Start a prepared kernel; `buffers` in the order of the kernel's bindings. Pass the same frozen array again and the
   * device may remember what it made of it. Any zero in `workgroups`: nothing is started.
   */
  launch(
    kernel: string,
    buffers: readonly DeviceBuffer[],
    workgroups: readonly [number, number, number],
    label?: string,
  ): void;
  copy(
    from: DeviceBuffer,
    fromOffset: number,
    to: DeviceBuffer,
    toOffset: number,
    bytes: number,
  ): void;
  read(
    buffer: DeviceBuffer,
    offset: number,
    bytes: number,
  ): Promise<Uint8Array>;
  /** Resolves when everything submitted so far is done. Rejects with a MachineError if the device is lost. */
  idle(): Promise<void>;
  /** Devices opened with timestamps: when each launch since the last call ran, in order of the launches. */
  timings?(): Promise<LaunchTiming[]>;
  destroy(): void;
}
