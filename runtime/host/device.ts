/** Devices that compute in the memory of this process. Kinds differ in the pool that runs launches. */

import { concatenated } from "../../spec/concatenated.ts";
import { invariant, MachineError } from "../../spec/errors.ts";
import type {
  Device,
  DeviceBuffer,
  DeviceKernel,
  FileRun,
  Launch,
  LaunchTiming,
  Staging,
  Streaming,
} from "../device.ts";
import type { HostRecords, RecordedLaunches } from "./records.ts";

/** Limits of every device over a pool. */
export const HOST_LIMITS = {
  maxStorageBuffersPerShaderStage: 64,
  maxComputeWorkgroupStorageSize: 1 << 20,
  maxComputeInvocationsPerWorkgroup: 1024,
  maxComputeWorkgroupSizeX: 1024,
  maxComputeWorkgroupsPerDimension: 65535,
} as const;

/** Memory of a pool. */
export interface HostSpan {
  readonly address: number;
  /** Allocated bytes, more than requested. */
  readonly size: number;
}

/** Memory of experts in several mappings. */
export interface ExpertSpans {
  /** The number of the weight. */
  readonly weight: number;
  readonly size: number;
  /** For each expert, the address of the first expert, if all were in its mapping. */
  readonly bases: readonly number[];
  readonly mappings: readonly HostSpan[];
}

/** A prepared kernel of a pool. */
export interface HostKernel {
  readonly index: number;
  readonly bindings: number;
}

/** Threads and memory shared by devices. Launches run one after another, in the order of the calls. */
export interface HostPool<Bindings = unknown> {
  /** For people. */
  readonly name: string;
  readonly limits: { readonly [limit: string]: number };
  readonly heap: {
    /** Allocates `bytes` zeroed bytes. Throws MachineError if there is no memory. */
    allocate(bytes: number, label: string): HostSpan;
    view(address: number, bytes: number): Uint8Array;
    release(span: HostSpan): void;
    /** Memory of files, for a device's `map`. Its size is that of the runs. */
    map?(runs: readonly FileRun[]): HostSpan | undefined;
    /** Memory of files, for a device's `mapExperts`. */
    mapExperts?(
      runs: readonly FileRun[],
      experts: number,
    ): ExpertSpans | undefined;
    /** Memory of experts, for a device's `stream`, and its number. */
    stream?(
      experts: readonly FileRun[],
    ): HostSpan & { readonly weight: number } | undefined;
  };
  readonly streams?: boolean;
  /**
   * Makes launches with bindings wait for experts of streamed weights, and find those in several mappings. `list`: the
   * list of tiles.
   */
  stream?(
    bindings: Bindings,
    weights: readonly number[],
    at: { readonly tiles: number; readonly list: object },
  ): void;
  streaming?(): Streaming;
  /** Prepares kernels in order. `progress` is called after each. */
  prepare(
    kernels: readonly DeviceKernel[],
    progress?: (done: number, total: number) => void,
  ): Promise<HostKernel[]>;
  /** Memory of a launch, in the order of a kernel's bindings. */
  bind(
    ranges: readonly { readonly address: number; readonly bytes: number }[],
  ): Bindings;
  /** Records a launch; `times` receives its time. */
  launch(
    kernel: HostKernel,
    bindings: Bindings,
    workgroups: readonly [number, number, number],
    times?: LaunchTiming[],
  ): void;
  /** Records of launches, which can be saved and replayed. */
  readonly records?: Pick<HostRecords, "keep" | "replay">;
  /** Records a copy between addresses. */
  copy(from: number, to: number, bytes: number): void;
  /** Writes bytes immediately if nothing is pending, else in order. */
  write(address: number, data: Uint8Array): void;
  /** Runs everything recorded so far and waits for it. */
  settle(): Promise<void>;
  /** Starts everything recorded so far. */
  submit(): void;
  close(): Promise<void>;
}

/** Options of a device. */
export interface HostDeviceOptions {
  /** Whether the pool is closed with the device. */
  readonly closesPool?: boolean;
  /** Whether launch times are recorded for `timings`. */
  readonly timestamps?: boolean;
}

/** A range of a pool's memory. */
class HostBuffer implements DeviceBuffer {
  readonly bytes: number;
  readonly address: number;
  /** The number of a weight that is streamed or in several mappings. */
  readonly weight: number | undefined;
  /** Whether experts are read from files when launches need them. */
  readonly streamed: boolean;
  /** Of a weight in several mappings: for each expert, the address of the first expert, if all were in its mapping. */
  readonly bases: readonly number[];
  constructor(
    bytes: number,
    address: number,
    { weight, streamed = false, bases = [address] }: {
      readonly weight?: number;
      readonly streamed?: boolean;
      readonly bases?: readonly number[];
    } = {},
  ) {
    this.bytes = bytes;
    this.address = address;
    this.weight = weight;
    this.streamed = streamed;
    this.bases = bases;
  }

  /** The memory of a range, in order. */
  spans(offset: number, bytes: number): { address: number; bytes: number }[] {
    const each = this.bytes / this.bases.length;
    const spans = [];
    for (let at = offset; at < offset + bytes;) {
      const expert = Math.floor(at / each);
      const end = Math.min(offset + bytes, (expert + 1) * each);
      spans.push({ address: this.bases[expert]! + at, bytes: end - at });
      at = end;
    }
    return spans;
  }
}

/** A rank's device over a pool. */
export class HostDevice<Bindings> implements Device {
  readonly kind = "cpu";
  readonly name: string;
  readonly limits: Device["limits"];
  readonly #pool: HostPool<Bindings>;
  readonly #closesPool: boolean;
  readonly #kernels = new Map<string, HostKernel>();
  #spans: HostSpan[] = [];
  /** Bindings of frozen lists of buffers. */
  readonly #bindings = new WeakMap<readonly DeviceBuffer[], Bindings>();
  /** Records of frozen lists of launches. */
  readonly #recorded = new WeakMap<readonly Launch[], RecordedLaunches>();
  #destroyed = false;

  readonly map?: NonNullable<Device["map"]>;
  readonly mapExperts?: NonNullable<Device["mapExperts"]>;
  readonly streams: boolean;
  readonly stream?: NonNullable<Device["stream"]>;
  readonly streaming?: NonNullable<Device["streaming"]>;
  readonly timings?: () => Promise<LaunchTiming[]>;
  #times: LaunchTiming[] | undefined;

  constructor(pool: HostPool<Bindings>, options: HostDeviceOptions = {}) {
    this.#pool = pool;
    this.name = pool.name;
    this.limits = pool.limits;
    this.#closesPool = options.closesPool ?? false;
    const { heap } = pool;
    if (heap.map) {
      this.map = (runs) => {
        this.#check();
        const span = heap.map!(runs);
        if (!span) return undefined;
        this.#spans.push(span);
        return new HostBuffer(span.size, span.address);
      };
    }
    if (heap.mapExperts && pool.stream) {
      this.mapExperts = (runs, experts) => {
        this.#check();
        const found = heap.mapExperts!(runs, experts);
        if (!found) return undefined;
        const { bases, mappings, size, weight } = found;
        this.#spans.push(...mappings);
        return new HostBuffer(size, bases[0]!, { weight, bases });
      };
    }
    this.streams = pool.streams ?? false;
    if (heap.stream && pool.stream && pool.streaming) {
      this.stream = (experts) => {
        this.#check();
        const span = heap.stream!(experts);
        if (!span) return undefined;
        this.#spans.push(span);
        const { size, address, weight } = span;
        return new HostBuffer(size, address, { weight, streamed: true });
      };
      this.streaming = () => pool.streaming!();
    }
    if (options.timestamps) {
      this.#times = [];
      this.timings = async () => {
        await this.idle();
        const times = this.#times!;
        this.#times = [];
        return times;
      };
    }
  }

  async prepare(
    kernels: { readonly [name: string]: DeviceKernel },
    progress?: (done: number, total: number) => void,
  ): Promise<void> {
    this.#check();
    const names = Object.keys(kernels);
    const ready = await this.#pool.prepare(
      names.map((name) => kernels[name]!),
      progress,
    );
    names.forEach((name, i) => this.#kernels.set(name, ready[i]!));
  }

  createBuffer(bytes: number, label: string): DeviceBuffer {
    this.#check();
    const span = this.#pool.heap.allocate(bytes, label);
    this.#spans.push(span);
    return new HostBuffer(bytes, span.address);
  }

  range(buffer: DeviceBuffer, offset: number, bytes: number): DeviceBuffer {
    return new HostBuffer(bytes, this.#address(buffer, offset, bytes));
  }

  /** Throws MachineError for streamed experts, which a later read from their files would restore. */
  write(buffer: DeviceBuffer, offset: number, data: Uint8Array): void {
    const host = this.#checked(buffer, offset, data.length);
    if (host.streamed) {
      throw new MachineError(
        "Cannot write experts: they are read from their files when they are used. Open the model without a limit of expert memory, from few files",
      );
    }
    let done = 0;
    for (const { address, bytes } of host.spans(offset, data.length)) {
      this.#pool.write(address, data.subarray(done, done += bytes));
    }
  }

  launch(
    kernel: string,
    buffers: readonly DeviceBuffer[],
    workgroups: readonly [number, number, number],
  ): void {
    this.#check();
    const known = this.#kernels.get(kernel);
    invariant(known, `kernel '${kernel}' is not prepared`);
    let bindings = this.#bindings.get(buffers);
    if (!bindings) {
      invariant(
        buffers.length === known.bindings,
        `kernel '${kernel}' binds ${known.bindings} buffers, not ${buffers.length}`,
      );
      bindings = this.#bind(buffers);
      if (Object.isFrozen(buffers)) this.#bindings.set(buffers, bindings);
    }
    this.#pool.launch(known, bindings, workgroups, this.#times);
  }

  streamFor(buffers: readonly DeviceBuffer[], tiles: number): void {
    const weights = buffers.flatMap((buffer) =>
      buffer instanceof HostBuffer ? buffer.weight ?? [] : []
    );
    if (weights.length === 0) return;
    const bindings = this.#bind(buffers);
    this.#bindings.set(buffers, bindings);
    this.#pool.stream!(bindings, weights, { tiles, list: buffers[tiles]! });
  }

  #bind(buffers: readonly DeviceBuffer[]): Bindings {
    return this.#pool.bind(
      buffers.map((buffer) => ({
        address: this.#checked(buffer, 0, buffer.bytes).address,
        bytes: buffer.bytes,
      })),
    );
  }

  launchAll(launches: readonly Launch[]): void {
    this.#check();
    const { records } = this.#pool;
    const recorded = this.#recorded.get(launches);
    if (recorded) return records!.replay(recorded, this.#times);
    const record = () => {
      for (const { kernel, buffers, workgroups } of launches) {
        this.launch(kernel, buffers, workgroups);
      }
    };
    if (!records || !Object.isFrozen(launches)) return record();
    this.#recorded.set(launches, records.keep(record));
  }

  copy(
    from: DeviceBuffer,
    fromOffset: number,
    to: DeviceBuffer,
    toOffset: number,
    bytes: number,
  ): void {
    this.#pool.copy(
      this.#address(from, fromOffset, bytes),
      this.#address(to, toOffset, bytes),
      bytes,
    );
  }

  async read(
    buffer: DeviceBuffer,
    offset: number,
    bytes: number,
  ): Promise<Uint8Array> {
    const spans = this.#checked(buffer, offset, bytes).spans(offset, bytes);
    await this.#pool.settle();
    return concatenated(
      spans.map(({ address, bytes }) =>
        this.#pool.heap.view(address, bytes).slice()
      ),
    );
  }

  /** The memory itself, in both directions: after the recorded work, the host can access it directly. */
  createStaging(): Staging {
    return {
      bytes: 0,
      open: async (buffer, spans) => {
        await this.#pool.settle();
        // MPI requires blocks of one ArrayBuffer.
        const start = this.#address(buffer, 0, buffer.bytes);
        const memory = this.#pool.heap.view(start, buffer.bytes);
        return spans.map(({ offset, bytes }) => {
          const from = this.#address(buffer, offset, bytes) - start;
          return memory.subarray(from, from + bytes);
        });
      },
      close: () => {},
    };
  }

  submit(): void {
    this.#check();
    this.#pool.submit();
  }

  async idle(): Promise<void> {
    this.#check();
    await this.#pool.settle();
  }

  destroy(): void {
    if (this.#destroyed) return;
    this.#destroyed = true;
    const spans = this.#spans;
    this.#spans = [];
    if (this.#closesPool) {
      void this.#pool.close();
      return;
    }
    // Earlier launches may still use the memory. A failed pool frees nothing.
    this.#pool.settle().then(
      () => spans.forEach((span) => this.#pool.heap.release(span)),
      () => {},
    );
  }

  #check(): void {
    if (this.#destroyed) {
      throw new MachineError(
        "Cannot use the CPU device: it was destroyed. Open another",
      );
    }
  }

  #address(buffer: DeviceBuffer, offset: number, bytes: number): number {
    const { address, bases } = this.#checked(buffer, offset, bytes);
    invariant(bases.length === 1, "a buffer in several mappings");
    return address + offset;
  }

  #checked(buffer: DeviceBuffer, offset: number, bytes: number): HostBuffer {
    this.#check();
    invariant(buffer instanceof HostBuffer, "a buffer of another device");
    invariant(
      offset >= 0 && bytes >= 0 && offset + bytes <= buffer.bytes,
      `bytes ${offset} to ${offset + bytes} of a buffer of ${buffer.bytes}`,
    );
    return buffer;
  }
}
