/** Buffers through which a device is read, kept and used again: fresh ones cost page faults. */

/** GPUBufferUsage MAP_READ | COPY_DST. */
const USAGE = 0x1 | 0x8;
const SMALLEST = 4096;
/** Longer reads go in pieces, so that staging stays small next to the data. */
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

  /** The pieces in which to read `bytes` bytes. */
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

  /** Give a buffer back; the list stays sorted, so that small reads do not take long buffers. */
  give(buffer: GPUBuffer): void {
    const at = this.#free.findIndex((other) => other.size >= buffer.size);
    this.#free.splice(at < 0 ? this.#free.length : at, 0, buffer);
  }
}
