/** A rank's WebGPU device: a GPU of any vendor, a software adapter, or that of a browser or Deno. */

import { invariant, MachineError } from "../../spec/errors.ts";
import {
  DEADLINE_MS,
  DeadlineError,
  type Device,
  type DeviceBuffer,
  type DeviceKernel,
  type LaunchTiming,
  type Staging,
  type StagingUse,
} from "../device.ts";
import type { WgslOptions } from "../../spec/kernel/wgsl/wgsl.ts";
import {
  adapterName,
  type GpuAdapter,
  hasPackedDot,
  MATRIX_FEATURES,
} from "./gpu.ts";
import { GpuPipeline } from "./pipeline.ts";
import { GpuMapping, GpuStaging } from "./staging.ts";
import { GpuTimer } from "./timer.ts";
import { politely } from "./politely.ts";

/** Requirements for the adapter. */
export interface CreateGpuDeviceOptions {
  /** The plan's `requiredLimits`. */
  readonly limits?: { readonly [limit: string]: number };
  /** The plan's `requiredFeatures`. */
  readonly features?: readonly string[];
  /** Owner of the device for messages: `rank 2`. */
  readonly label?: string;
  /** Whether launch times are recorded, if the adapter supports it. */
  readonly timestamps?: boolean;
  /** Maximum milliseconds that the host waits for the device, at most for a run. Default: ten minutes. */
  readonly deadlineMs?: number;
}

/**
 * Number of launches after a wait that are submitted at once, so that the device computes while the host records the
 * rest, which is one submission.
 */
const FIRST_LAUNCHES = 16;

/** Milliseconds in which a lost device reports its loss after pending work was rejected. */
const LOST_MS = 100;

/** GPUBufferUsage COPY_SRC | COPY_DST | STORAGE; the global does not exist in Node.js. */
const USAGE = 0x4 | 0x8 | 0x80;

/** Opens a device on an adapter of the list, or on the default adapter of a `GPU` of a browser or Deno. */
export async function createGpuDevice(
  source: GpuAdapter | GPU,
  options: CreateGpuDeviceOptions = {},
): Promise<Device> {
  const { limits = {}, features = [], label, timestamps = false } = options;
  const { deadlineMs = DEADLINE_MS } = options;
  const adapter = "request" in source
    ? await source.request()
    : await politely(source.requestAdapter());
  if (!adapter) {
    throw new MachineError(
      "Cannot open a device: there is no adapter. Install a Vulkan driver",
    );
  }
  const name = "request" in source ? source.name : adapterName(adapter.info);
  checkAdapter(name, adapter, limits, features);
  const timed = timestamps && adapter.features.has("timestamp-query");
  const subgroup = subgroupOf(source);
  const packedDot = "request" in source
    ? source.packedDot
    : hasPackedDot(source);
  const matrices = "request" in source ? source.matrices : undefined;
  const device = await politely(adapter.requestDevice({
    ...(label ? { label } : {}),
    requiredLimits: { ...limits },
    requiredFeatures: [
      ...features,
      ...(timed ? ["timestamp-query"] : []),
      ...(matrices ? MATRIX_FEATURES : subgroup ? ["subgroups"] : []),
    ] as GPUFeatureName[],
  })).catch((error: unknown) => {
    throw new MachineError(
      `Cannot open a device on adapter '${name}': ${textOf(error)}`,
    );
  });
  const wgsl = { subgroup, packedDot, matrices };
  return new GpuDevice(device, { name, label, timed, deadlineMs, wgsl });
}

/**
 * Subgroup size for lanes that load for each other: software adapters load per invocation; GPUs load a uniform value
 * once.
 */
function subgroupOf(source: GpuAdapter | GPU): number | undefined {
  return "request" in source && source.type === "software"
    ? source.subgroup
    : undefined;
}

function checkAdapter(
  name: string,
  adapter: GPUAdapter,
  limits: { readonly [limit: string]: number },
  features: readonly string[],
): void {
  const offered = adapter.limits as unknown as { [limit: string]: unknown };
  for (const [limit, value] of Object.entries(limits)) {
    const have = offered[limit];
    if (typeof have !== "number" || have < value) {
      throw new MachineError(
        `Cannot open a device on adapter '${name}': the plan needs '${limit}' of ${value} and the adapter has ${
          typeof have === "number" ? have : "no such limit"
        }. Compile for its limits or choose another adapter`,
      );
    }
  }
  for (const feature of features) {
    if (!adapter.features.has(feature)) {
      throw new MachineError(
        `Cannot open a device on adapter '${name}': the plan needs the feature '${feature}', which it does not have. Choose another adapter`,
      );
    }
  }
}

function textOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** A range of a buffer of a WebGPU device. */
class GpuMemory implements DeviceBuffer {
  readonly gpu: GPUBuffer;
  readonly offset: number;
  readonly bytes: number;
  constructor(gpu: GPUBuffer, offset = 0, bytes = gpu.size) {
    this.gpu = gpu;
    this.offset = offset;
    this.bytes = bytes;
  }
}

class GpuDevice implements Device {
  readonly kind = "gpu";
  readonly name: string;
  readonly limits: { readonly [limit: string]: number };
  /** For messages: devices of one adapter have equal names. */
  readonly #title: string;
  readonly #device: GPUDevice;
  readonly #pipelines = new Map<string, GpuPipeline>();
  readonly #staging: GpuStaging;
  readonly #timer: GpuTimer | undefined;
  /** Reject functions of the waits in progress, for a lost device. */
  readonly #waits = new Set<(error: MachineError) => void>();
  #encoder: GPUCommandEncoder | undefined;
  #pass: GPUComputePassEncoder | undefined;
  /** The pipeline that is set in the pass: ranks that share a device launch the same kernel consecutively. */
  #current: GpuPipeline | undefined;
  /** Launches since the start of the last wait. */
  #launches = 0;
  #failure: MachineError | undefined;
  #destroyed = false;
  readonly #deadlineMs: number;
  readonly #wgsl: WgslOptions;
  /** Kernels of unsubmitted work, and of each submission in progress. */
  #recorded = new Set<string>();
  readonly #unfinished = new Set<ReadonlySet<string>>();
  #late = false;
  readonly timings?: () => Promise<LaunchTiming[]>;

  constructor(
    device: GPUDevice,
    { name, label, timed, deadlineMs, wgsl }: {
      readonly name: string;
      readonly label: string | undefined;
      readonly timed: boolean;
      readonly deadlineMs: number;
      readonly wgsl: WgslOptions;
    },
  ) {
    this.#wgsl = wgsl;
    this.#deadlineMs = deadlineMs;
    this.#device = device;
    this.name = name;
    this.#title = label ? `'${name}' (${label})` : `'${name}'`;
    this.limits = limitsOf(device);
    this.#staging = new GpuStaging(device, this.limits["maxBufferSize"]!);
    device.addEventListener("uncapturederror", (event) => {
      event.preventDefault();
      this.#fail(event.error.message);
    });
    device.lost.then(({ reason, message }) => {
      const error = this.#fail(`the device was lost (${reason}): ${message}`);
      for (const reject of this.#waits) reject(error);
    });
    if (timed) {
      const timer = this.#timer = new GpuTimer(device);
      this.timings = async () => {
        this.#submit();
        return await this.#wait(timer.take());
      };
    }
  }

  async prepare(
    kernels: { readonly [name: string]: DeviceKernel },
    progress?: (done: number, total: number) => void,
  ): Promise<void> {
    const wanted = Object.entries(kernels)
      .filter(([name]) => !this.#pipelines.has(name));
    const made = await this.#wait(Promise.all(
      wanted.map(([name, kernel]) =>
        GpuPipeline.create(this.#device, name, kernel, {
          deviceName: this.name,
          wgsl: this.#wgsl,
        })
      ),
    ));
    // Software adapters compile at the first launch; this makes the progress visible.
    for (const [done, pipeline] of made.entries()) {
      progress?.(done, made.length);
      pipeline.warmUp();
      this.#watch(new Set([pipeline.name]));
      await this.idle();
      this.#pipelines.set(pipeline.name, pipeline);
    }
    progress?.(made.length, made.length);
  }

  createBuffer(bytes: number, label: string): DeviceBuffer {
    const limit = this.limits["maxBufferSize"]!;
    if (bytes > limit) {
      throw new MachineError(
        `Cannot allocate '${label}' on device ${this.#title}: it has ${bytes} bytes and the device allows ${limit}. Use more ranks or raise the limit 'maxBufferSize'`,
      );
    }
    return new GpuMemory(
      this.#device.createBuffer({ size: bytes, usage: USAGE, label }),
    );
  }

  range(buffer: DeviceBuffer, offset: number, bytes: number): DeviceBuffer {
    const { gpu, offset: start } = memory(buffer, offset, bytes);
    return new GpuMemory(gpu, start + offset, bytes);
  }

  write(buffer: DeviceBuffer, offset: number, data: Uint8Array): void {
    if (data.byteLength === 0) return;
    const { gpu, offset: start } = memory(buffer, offset, data.byteLength);
    // The queue writes immediately, so earlier records must be submitted first.
    this.#submit();
    this.#device.queue.writeBuffer(
      gpu,
      start + offset,
      data.buffer as ArrayBuffer,
      data.byteOffset,
      data.byteLength,
    );
  }

  launch(
    kernel: string,
    buffers: readonly DeviceBuffer[],
    workgroups: readonly [number, number, number],
    label?: string,
  ): void {
    const [x, y, z] = workgroups;
    if (x === 0 || y === 0 || z === 0) return;
    this.#recorded.add(kernel);
    const pipeline = this.#pipelines.get(kernel);
    if (!pipeline) throw new Error(`internal: kernel '${kernel}' not prepared`);
    let pass = this.#pass;
    if (this.#timer) {
      this.#endPass();
      pass = this.#timer.beginPass(this.#encode(), label ?? kernel);
    } else if (!pass) {
      pass = this.#pass = this.#encode().beginComputePass();
    }
    if (pipeline !== this.#current) {
      pass!.setPipeline(pipeline.gpu);
      this.#current = pipeline;
    }
    pass!.setBindGroup(0, pipeline.bind(buffers, bindingOf));
    pass!.dispatchWorkgroups(x, y, z);
    if (this.#timer) {
      pass!.end();
      this.#current = undefined;
    }
    if (++this.#launches === FIRST_LAUNCHES) this.#submit();
  }

  copy(
    from: DeviceBuffer,
    fromOffset: number,
    to: DeviceBuffer,
    toOffset: number,
    bytes: number,
  ): void {
    if (bytes === 0) return;
    this.#endPass();
    const [source, target] = [
      memory(from, fromOffset, bytes),
      memory(to, toOffset, bytes),
    ];
    this.#encode().copyBufferToBuffer(
      source.gpu,
      source.offset + fromOffset,
      target.gpu,
      target.offset + toOffset,
      bytes,
    );
  }

  async read(
    buffer: DeviceBuffer,
    offset: number,
    bytes: number,
  ): Promise<Uint8Array> {
    const result = new Uint8Array(bytes);
    const pieces = this.#staging.split(bytes).map(({ start, length }) => {
      const stage = this.#staging.take(length);
      this.copy(buffer, offset + start, new GpuMemory(stage), 0, length);
      return { stage, start, length };
    });
    // Simultaneous reads, such as several outputs, form one submission.
    await Promise.resolve();
    this.#submit();
    await this.#wait(
      Promise.all(pieces.map(async ({ stage, start, length }) => {
        await stage.mapAsync(1, /* GPUMapMode.READ */ 0, length);
        result.set(new Uint8Array(stage.getMappedRange(0, length)), start);
        stage.unmap();
        this.#staging.give(stage);
      })),
    );
    return result;
  }

  createStaging(use: StagingUse, bytes: number): Staging {
    return new GpuMapping(this.#device, use, bytes, {
      copy: (stage, at, buffer, { offset, bytes }) => {
        const staged = new GpuMemory(stage);
        if (use === "write") this.copy(staged, at, buffer, offset, bytes);
        else this.copy(buffer, offset, staged, at, bytes);
      },
      map: (stage, length) => {
        this.#submit();
        return this.#wait(stage.mapAsync(use === "read" ? 1 : 2, 0, length));
      },
    });
  }

  submit(): void {
    this.#submit();
  }

  async idle(): Promise<void> {
    this.#submit();
    await this.#wait(this.#device.queue.onSubmittedWorkDone());
  }

  destroy(): void {
    this.#destroyed = true;
    // Destroying work that does not end may hang: it ends with the process.
    if (!this.#late) this.#device.destroy();
  }

  #encode(): GPUCommandEncoder {
    return this.#encoder ??= this.#device.createCommandEncoder();
  }

  #endPass(): void {
    this.#pass?.end();
    this.#pass = undefined;
    this.#current = undefined;
  }

  #submit(): void {
    if (!this.#encoder) return;
    this.#endPass();
    this.#timer?.resolve(this.#encoder);
    this.#device.queue.submit([this.#encoder.finish()]);
    this.#encoder = undefined;
    if (this.#recorded.size > 0) this.#watch(this.#recorded);
    this.#recorded = new Set();
  }

  /** Records the kernels of the last submission until it is done. */
  #watch(kernels: ReadonlySet<string>): void {
    this.#unfinished.add(kernels);
    const done = () => void this.#unfinished.delete(kernels);
    this.#device.queue.onSubmittedWorkDone().then(done, done);
  }

  /** The device does not finish its work. */
  #tooLate(): MachineError {
    this.#late = true;
    const [first = []] = this.#unfinished;
    // A key is a kernel's name and a distinguishing suffix.
    const names = new Set([...first].map((key) => key.split("#")[0]!));
    return this.#failure ??= new DeadlineError([...names], this.#deadlineMs);
  }

  /** Awaits the GPU. A lost device, or an error that it reported meanwhile, becomes the error of this wait. */
  async #wait<T>(promise: Promise<T>): Promise<T> {
    this.#launches = 0;
    if (this.#failure) {
      promise.catch(() => {}); // the first failure is the one to tell
      throw this.#failure;
    }
    let fail: (error: MachineError) => void = () => {};
    const lost = new Promise<never>((_, reject) => fail = reject);
    this.#waits.add(fail);
    const timer = setTimeout(() => fail(this.#tooLate()), this.#deadlineMs);
    try {
      const value = await politely(Promise.race([promise, lost]));
      if (this.#failure) throw this.#failure;
      return value;
    } catch (error) {
      // Browsers reject pending promises before they report the loss of the device, which is the reason.
      await Promise.race([lost, pause(LOST_MS)]).catch(() => {});
      throw this.#failure ??
        (error instanceof MachineError ? error : this.#fail(textOf(error)));
    } finally {
      clearTimeout(timer);
      this.#waits.delete(fail);
    }
  }

  #fail(text: string): MachineError {
    const state = this.#destroyed ? "it was closed" : text.trim();
    return this.#failure ??= new MachineError(
      `Cannot compute on device ${this.#title}: ${state}`,
    );
  }
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** A buffer of this device with these bytes in bounds: WebGPU checks the entire allocation, not the range. */
function memory(
  buffer: DeviceBuffer,
  offset: number,
  bytes: number,
): GpuMemory {
  invariant(
    offset >= 0 && bytes >= 0 && offset + bytes <= buffer.bytes,
    `bytes ${offset} to ${offset + bytes} of a buffer of ${buffer.bytes}`,
  );
  return buffer as GpuMemory;
}

function bindingOf(buffer: DeviceBuffer): GPUBufferBinding {
  const { gpu, offset, bytes } = buffer as GpuMemory;
  return { buffer: gpu, offset, size: bytes };
}

function limitsOf(device: GPUDevice): { [limit: string]: number } {
  const limits: { [limit: string]: number } = {};
  for (const key in device.limits) {
    const value = (device.limits as unknown as Record<string, unknown>)[key];
    if (typeof value === "number") limits[key] = value;
  }
  return limits;
}
