/** How long a device takes for a launch, from what the launch does and what the machine file says of the device. */

import type { MachineDevice } from "../../../spec/machine.ts";
import type { Computer } from "../../tuning.ts";
import type { LaunchWork } from "./launch_work.ts";

/** Operations that go along with each multiply-add of a matmul with a device's tiles, and are in its measured rate already. */
export const OPERATIONS_PER_MULTIPLY_ADD: { readonly [C in Computer]: number } =
  { cpu: 4.3, native: 3.9, gpu: 2.25, software: 2.25 };

/** Seconds of a launch, and what for. */
export interface LaunchSeconds {
  /** The same for every launch, and what it takes to share one. */
  readonly launch: number;
  /** Arithmetic, where that takes longer than memory; else 0. */
  readonly arithmetic: number;
  /** Memory, where that takes longer than arithmetic; else what is not hidden behind that: weights, on a processor. */
  readonly memory: number;
}

/** Different bytes that a launch touches: all, and what it reads of weights and of states. */
export interface TouchedBytes {
  readonly bytes: number;
  readonly weights: number;
  readonly states: number;
}

/** Predict a launch that touches `bytes` different bytes of memory, of which it reads some from weights and states. */
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
  const computes = multiplyAdds / device.multiplyAdds +
    rest / device.operations;
  const reads = Math.max(
    device.reading === undefined ? 0 : weights / device.reading,
    device.attending === undefined ? 0 : states / device.attending,
  );
  // On a part of the device alone, unless that takes long enough for the others to join in.
  const alone = parallel * Math.max(computes, reads) <= grain;
  const workers = alone ? 1 : Math.max(1, Math.min(parallel, work.workgroups));
  const slower = parallel / workers;
  const launch = device.launch + (workers > 1 ? join : 0);
  const bandwidth = cached && device.cache
    ? device.cache.bandwidth
    : device.bandwidth;
  const arithmetic = slower * computes;
  const memory = Math.max(bytes / bandwidth, slower * reads);
  // Cores that wait for weights compute nothing meanwhile; a GPU's other workgroups do.
  const stalled = device.computer === undefined ? 0 : weights / bandwidth;
  return arithmetic + stalled >= memory
    ? { launch, arithmetic, memory: stalled }
    : { launch, arithmetic: 0, memory };
}
