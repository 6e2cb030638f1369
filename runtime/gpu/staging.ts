/** Staging buffers of a device, reused because fresh ones cost page faults. */

import type { DeviceBuffer, Span, Staging, StagingUse } from "../device.ts";

/** GPUBufferUsage MAP_READ | COPY_DST. */
const USAGE = 0x1 | 0x8;
const SMALLEST = 4096;
/** Longer reads are split, so that staging stays small relative to the data. */
const LARGEST = 64 << 20;

/** The read-back buffers of one device. */
export class GpuStaging {
  readonly #device: GPUDevice;
  readonly #largest: number;
  readonly #free: GPUBuffer[] = [];

  constructor(device: GPUDevice, maxBufferSize: number) {
    this.#device = device;
    this.#largest = Math.min(LARGEST, maxBufferSize - maxBufferSize % 4);
  }

  /** The pieces for reading `bytes` bytes. */
  split(bytes: number): { start: number; length: number }[] {
    const pieces = [];
    for (let start = 0; start < bytes; start += this.#largest) {
      pieces.push({ start, length: Math.min(this.#largest, bytes - start) });
    }
    return pieces;
  }

  /** A buffer of at least `bytes` bytes, unmapped. */
  take(bytes: number): GPUBuffer {
    const found = this.#free.findIndex((buffer) => buffer.size >= bytes);
    if (found >= 0) return this.#free.splice(found, 1)[0]!;
    const size = Math.min(
      this.#largest,
      Math.max(SMALLEST, 2 ** Math.ceil(Math.log2(bytes))),
    );
    return this.#device.createBuffer({
      size,
      usage: USAGE,
      label: "read back",
    });
  }

  /** Releases a buffer. The list stays sorted, so that small reads do not use long buffers. */
  give(buffer: GPUBuffer): void {
    const at = this.#free.findIndex((other) => other.size >= buffer.size);
    this.#free.splice(at < 0 ? this.#free.length : at, 0, buffer);
  }
}

/** Device functions for a mapping. */
export interface MappingDevice {
  /** Records a copy between byte `at` of the mapping and a span of a buffer. */
  copy(stage: GPUBuffer, at: number, buffer: DeviceBuffer, span: Span): void;
  /** Maps the first bytes after all recorded work. */
  map(stage: GPUBuffer, bytes: number): Promise<unknown>;
}

/** A mapped buffer as staging: spans are packed in it, and the host reads or writes the mapping. */
export class GpuMapping implements Staging {
  readonly bytes: number;
  readonly #use: StagingUse;
  readonly #stage: GPUBuffer;
  readonly #device: MappingDevice;
  #lent: readonly { readonly at: number; readonly span: Span }[] = [];
  #buffer: DeviceBuffer | undefined;
  #mapped = false;

  constructor(
    gpu: GPUDevice,
    use: StagingUse,
    bytes: number,
    device: MappingDevice,
  ) {
    this.#use = use;
    this.#device = device;
    this.#stage = gpu.createBuffer({
      size: bytes,
      // GPUBufferUsage MAP_WRITE | COPY_SRC
      usage: use === "read" ? USAGE : 0x2 | 0x4,
      label: `exchange ${use}`,
    });
    this.bytes = this.#stage.size;
  }

  async open(
    buffer: DeviceBuffer,
    spans: readonly Span[],
  ): Promise<Uint8Array[]> {
    let length = 0;
    this.#buffer = buffer;
    this.#lent = spans.map((span) => {
      const at = length;
      length += span.bytes;
      return { at, span };
    });
    if (length === 0) return spans.map(() => new Uint8Array(0));
    if (this.#use === "read") this.#copyAll();
    await this.#device.map(this.#stage, length);
    this.#mapped = true;
    const range = this.#stage.getMappedRange(0, length);
    return this.#lent.map(({ at, span }) =>
      new Uint8Array(range, at, span.bytes)
    );
  }

  close(): void {
    if (!this.#mapped) return;
    this.#mapped = false;
    this.#stage.unmap();
    if (this.#use === "write") this.#copyAll();
  }

  #copyAll(): void {
    for (const { at, span } of this.#lent) {
      this.#device.copy(this.#stage, at, this.#buffer!, span);
    }
  }
}
