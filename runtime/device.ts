/** What computes for a rank: a GPU, or the CPU engine. The executor knows only this interface. */

import { MachineError } from "../spec/errors.ts";
import type { PlanKernel } from "../spec/plan/plan.ts";

/** Milliseconds for what a device is handed at once, which is at most a run, where nothing else is said. */
export const DEADLINE_MS = 600_000;

/** A kernel, one of several where it is not known which, or a copy where there is none, takes longer than it may; the device is lost. */
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

/** A kernel as devices prepare it. */
export interface DeviceKernel extends PlanKernel {
  /** What a GPU runs instead of the tree's print: text written by hand, to compare with. */
  readonly wgsl?: string;
  /** `fast` numerics: a device that can rounds `fma(a, b, c)` once, also where its kind rounds it twice. */
  readonly fused?: boolean;
}

/** When a launch ran on the device, in nanoseconds of the device's clock. */
export interface LaunchTiming {
  readonly start: number;
  readonly end: number;
}

/** A launch, by what `Device.launch` takes. */
export interface Launch {
  readonly kernel: string;
  readonly buffers: readonly DeviceBuffer[];
  readonly workgroups: readonly [number, number, number];
}

/** Memory of a device, or a range of it. Zero when created. */
export interface DeviceBuffer {
  readonly bytes: number;
}

/**
 * Host memory through which bytes enter or leave a device, for one transfer at a time: mapped memory of a GPU, or the very
 * memory of a device that computes on the host.
 */
export interface Staging {
  /** Bytes that were allocated for it: none where the device's memory is host memory. */
  readonly bytes: number;
  /**
   * Lend spans of a buffer until `close`, in one ArrayBuffer. To read: what all calls so far leave there. To write: room of
   * any content; what it then holds is in the buffer from `close` on. Meanwhile no other call may write those bytes, nor
   * read them where they are lent to write.
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
  /** Experts that were in memory when a launch needed them, and experts that were not. */
  readonly hits: number;
  readonly misses: number;
  /** Time in which launches waited because no expert that they needed was in memory. */
  readonly waitedMs: number;
  readonly residentBytes: number;
}

/** Which way bytes go through a staging. */
export type StagingUse = "read" | "write";

/**
 * A logical device. `write`, `launch` and `copy` take effect in the order of the calls; `read` sees all of them.
 * Nothing waits except `prepare`, `read`, `idle` and a staging's `open`. Byte offsets and lengths are multiples of 4.
 */
export interface Device {
  readonly kind: "gpu" | "cpu";
  /** Adapter name, for people. */
  readonly name: string;
  readonly limits: { readonly [limit: string]: number };
  /** Make kernels ready to launch, by name; `progress` is called as each becomes ready. */
  prepare(
    kernels: { readonly [name: string]: DeviceKernel },
    progress?: (done: number, total: number) => void,
  ): Promise<void>;
  createBuffer(bytes: number, label: string): DeviceBuffer;
  /** A range of a buffer as a buffer: the same memory. `offset` is a multiple of 256, to be bound by kernels. */
  range(buffer: DeviceBuffer, offset: number, bytes: number): DeviceBuffer;
  /**
   * A buffer of parts of files, one after the other, whose memory is that of the files as far as nobody writes to it.
   * Undefined where they are not stored so that this can be. The files must not change while the buffer is used.
   */
  map?(runs: readonly FileRun[]): DeviceBuffer | undefined;
  /** Experts are streamed even if their files could be mapped. */
  readonly streams?: boolean;
  /**
   * A buffer of experts, each a part of a file, which are in memory only while launches need them. Only launches
   * given to `streamFor` may bind it. Undefined where the system cannot.
   */
  stream?(experts: readonly FileRun[]): DeviceBuffer | undefined;
  /** Have launches with these frozen buffers wait for the experts that the list in `buffers[tiles]` names, if any are streamed. */
  streamFor?(buffers: readonly DeviceBuffer[], tiles: number): void;
  /** What streaming did so far. */
  streaming?(): Streaming;
  write(buffer: DeviceBuffer, offset: number, data: Uint8Array): void;
  /**
   * Start a prepared kernel; `buffers` in the order of the kernel's bindings. Pass the same frozen array again and the
   * device may cache what it made of it. Any zero in `workgroups`: nothing is started.
   */
  launch(
    kernel: string,
    buffers: readonly DeviceBuffer[],
    workgroups: readonly [number, number, number],
    label?: string,
  ): void;
  /** Start launches, one after another. Pass the same frozen array again and the device may cache what it made of it. */
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
  /** Make a staging for transfers of up to `bytes` bytes. */
  createStaging(use: StagingUse, bytes: number): Staging;
  /** Start what was asked for so far, without waiting for it. */
  submit(): void;
  /** Resolves when everything asked for so far is done. Rejects with a MachineError if the device is lost. */
  idle(): Promise<void>;
  /** Devices opened with timestamps: when each launch since the last call ran, in order of the launches. */
  timings?(): Promise<LaunchTiming[]>;
  destroy(): void;
}
