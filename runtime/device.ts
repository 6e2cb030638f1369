/** Devices: a GPU or the CPU engine of a rank. The executor uses only this interface. */

import { MachineError } from "../spec/errors.ts";
import type { PlanKernel } from "../spec/plan/plan.ts";

/** Default deadline in milliseconds for the work submitted to a device at once, at most a run. */
export const DEADLINE_MS = 600_000;

/** A kernel (or one of several candidates), or a copy, exceeds the deadline; the device is lost. */
export class DeadlineError extends MachineError {
  readonly kernels: readonly string[];
  readonly deadlineMs: number;
  constructor(kernels: readonly string[], deadlineMs: number, at = "") {
    const [first, ...more] = kernels;
    const what = first === undefined
      ? "a copy"
      : more.length === 0
      ? `kernel '${first}'`
      : `one of ${kernels.length} kernels from '${first}' to '${more.at(-1)}'`;
    super(
      `Cannot finish ${what}${at}: it has not ended within ${
        deadlineMs / 1000
      } s. Allow more with --deadline if it needs that`,
    );
    this.kernels = kernels;
    this.deadlineMs = deadlineMs;
  }
}

/** A kernel for `Device.prepare`. */
export interface DeviceKernel extends PlanKernel {
  /** Replaces the printed tree on a GPU: handwritten text for comparison. */
  readonly wgsl?: string;
  /** `fast` numerics: a capable device rounds `fma(a, b, c)` once, even if its kind rounds it twice. */
  readonly fused?: boolean;
}

/** Time of a launch on the device, in nanoseconds of the device's clock. */
export interface LaunchTiming {
  readonly start: number;
  readonly end: number;
}

/** A launch: the arguments of `Device.launch`. */
export interface Launch {
  readonly kernel: string;
  readonly buffers: readonly DeviceBuffer[];
  readonly workgroups: readonly [number, number, number];
}

/** Memory of a device, or a range of it. Initially zero. */
export interface DeviceBuffer {
  readonly bytes: number;
}

/**
 * Host memory through which bytes enter or leave a device, for one transfer at a time: mapped memory of a GPU, or the
 * memory of a device that computes on the host.
 */
export interface Staging {
  /** Bytes allocated for it: 0 if the device's memory is host memory. */
  readonly bytes: number;
  /**
   * Lends spans of a buffer until `close`, in one ArrayBuffer. For reading: the contents after all previous calls. For
   * writing: arbitrary contents, which are in the buffer from `close` on. Until then no other call may write these
   * bytes, or read them if they are lent for writing.
   */
  open(buffer: DeviceBuffer, spans: readonly Span[]): Promise<Uint8Array[]>;
  close(): void;
}

/** Bytes of a buffer. */
export interface Span {
  readonly offset: number;
  readonly bytes: number;
}

/** Bytes of an open file. */
export interface FileRun {
  /** For people. */
  readonly name: string;
  readonly descriptor: number;
  readonly offset: number;
  readonly bytes: number;
}

/** Statistics of streamed experts. */
export interface Streaming {
  readonly bytesRead: number;
  /** Numbers of experts that were in memory when a launch needed them, and that were not. */
  readonly hits: number;
  readonly misses: number;
  /** Milliseconds for which launches waited because no required expert was in memory. */
  readonly waitedMs: number;
  /** Milliseconds in which experts were read. */
  readonly readMs: number;
  readonly residentBytes: number;
}

/** Direction of a staging. */
export type StagingUse = "read" | "write";

/**
 * A logical device. `write`, `launch` and `copy` take effect in the order of the calls; `read` sees all of them. Only
 * `prepare`, `read`, `idle` and a staging's `open` wait. Byte offsets and lengths are multiples of 4.
 */
export interface Device {
  readonly kind: "gpu" | "cpu";
  /** Adapter name for display. */
  readonly name: string;
  readonly limits: { readonly [limit: string]: number };
  /** Prepares kernels for launches, by name. `progress` is called after each. */
  prepare(
    kernels: { readonly [name: string]: DeviceKernel },
    progress?: (done: number, total: number) => void,
  ): Promise<void>;
  createBuffer(bytes: number, label: string): DeviceBuffer;
  /** A range of a buffer as a buffer of the same memory. `offset` is a multiple of 256, so that kernels can bind it. */
  range(buffer: DeviceBuffer, offset: number, bytes: number): DeviceBuffer;
  /**
   * A buffer of concatenated parts of files that shares memory with the files until it is written. Undefined if the
   * layout does not allow it. The files must not change while the buffer is used.
   */
  map?(runs: readonly FileRun[]): DeviceBuffer | undefined;
  /**
   * The same for experts of equal size, also if they have no common layout in pages. Only launches registered by
   * `streamFor` may bind it.
   */
  mapExperts?(
    runs: readonly FileRun[],
    experts: number,
  ): DeviceBuffer | undefined;
  /** Whether experts are streamed even if their files could be mapped. */
  readonly streams?: boolean;
  /**
   * A buffer of experts, each a part of a file, which are in memory only while launches need them. Only launches
   * registered by `streamFor` may bind it. Undefined if the system does not support it.
   */
  stream?(experts: readonly FileRun[]): DeviceBuffer | undefined;
  /**
   * Makes launches with these frozen buffers find the experts in the list `buffers[tiles]`, if they are in several
   * mappings, and wait for them, if they are streamed.
   */
  streamFor?(buffers: readonly DeviceBuffer[], tiles: number): void;
  /** Statistics of streaming so far. */
  streaming?(): Streaming;
  write(buffer: DeviceBuffer, offset: number, data: Uint8Array): void;
  /**
   * Launches a prepared kernel with `buffers` in the order of the kernel's bindings. The device may cache data for a
   * frozen array that is passed again. If any of `workgroups` is zero, nothing is launched.
   */
  launch(
    kernel: string,
    buffers: readonly DeviceBuffer[],
    workgroups: readonly [number, number, number],
    label?: string,
  ): void;
  /** Launches several kernels, one after another. The device may cache data for a frozen array that is passed again. */
  launchAll?(launches: readonly Launch[]): void;
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
  /** Creates a staging for transfers of up to `bytes` bytes. */
  createStaging(use: StagingUse, bytes: number): Staging;
  /** Starts the work recorded so far, without waiting for it. */
  submit(): void;
  /** Resolves when all work recorded so far is done. Rejects with a MachineError if the device is lost. */
  idle(): Promise<void>;
  /** Times of the launches since the last call, in order, if the device was opened with timestamps. */
  timings?(): Promise<LaunchTiming[]>;
  destroy(): void;
}
