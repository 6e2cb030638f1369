/** Predicts the time of a launch on a device from its work and the machine file. */

import type { MachineDevice } from "../../../spec/machine.ts";
import type { Computer } from "../../tune/tuning.ts";
import type { LaunchWork } from "./launch_work.ts";

/** Operations per multiply-add of a matmul with a device's tiles that are already part of its measured rate. */
export const OPERATIONS_PER_MULTIPLY_ADD: { readonly [C in Computer]: number } =
  { cpu: 4.3, native: 3.9, gpu: 3.7, software: 2.25 };

/** Lanes of the workgroups that a GPU's `parallel` counts. */
const GPU_LANES = 32;

/**
 * Shares of a device that a launch can fill: workgroups; a GPU has those of more lanes on as many more of its cores.
 */
function shares(
  { computer }: MachineDevice,
  { workgroups, lanes }: LaunchWork,
): number {
  return computer === undefined
    ? workgroups * Math.max(1, lanes / GPU_LANES)
    : workgroups;
}

/** Multiply-adds per second of matrix units with 16-bit operands. Undefined: the device has none. */
export function matrixRate({ matrix }: MachineDevice): number | undefined {
  return matrix?.bf16;
}

/** Seconds of a launch by cause. */
export interface LaunchSeconds {
  /** Launch overhead, and the cost of splitting the launch. */
  readonly launch: number;
  /** Arithmetic time if it exceeds memory time, else 0. */
  readonly arithmetic: number;
  /** Memory time if it exceeds arithmetic time; otherwise the part that is not hidden: weights, on a CPU. */
  readonly memory: number;
}

/** Distinct bytes touched by a launch: all, and those read from weights and states. */
export interface TouchedBytes {
  readonly bytes: number;
  readonly weights: number;
  readonly states: number;
}

/** Predicts a launch that touches `bytes` distinct bytes of memory, some of them from weights and states. */
export function launchSeconds(
  device: MachineDevice,
  work: LaunchWork,
  { bytes, weights, states, cached }: TouchedBytes & {
    readonly cached: boolean;
  },
): LaunchSeconds {
  const { parallel = 1, grain = 0, join = 0 } = device;
  const { multiplyAdds, operations } = work;
  const rest = Math.max(
    0,
    operations -
      OPERATIONS_PER_MULTIPLY_ADD[device.computer ?? "gpu"] * multiplyAdds,
  );
  const rate = work.matrices ? matrixRate(device) : undefined;
  const computes = multiplyAdds / (rate ?? device.multiplyAdds) +
    rest / device.operations;
  const reads = Math.max(
    device.reading === undefined ? 0 : weights / device.reading,
    device.attending === undefined ? 0 : states / device.attending,
  );
  // On a part of the device alone, unless it takes long enough for the others to join.
  const alone = parallel * Math.max(computes, reads) <= grain;
  const workers = alone
    ? 1
    : Math.max(1, Math.min(parallel, shares(device, work)));
  const slower = parallel / workers;
  const launch = device.launch + (workers > 1 ? join : 0);
  const bandwidth = cached && device.cache
    ? device.cache.bandwidth
    : device.bandwidth * (device.efficiency ?? 1);
  const arithmetic = slower * computes;
  const memory = Math.max(bytes / bandwidth, slower * reads);
  // CPU cores that wait for weights compute nothing meanwhile; other workgroups of a GPU do.
  const stalled = device.computer === undefined ? 0 : weights / bandwidth;
  return arithmetic + stalled >= memory
    ? { launch, arithmetic, memory: stalled }
    : { launch, arithmetic: 0, memory };
}
