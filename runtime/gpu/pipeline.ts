/** One kernel on one WebGPU device: its pipeline, its bind groups, its first launch. */

import { MachineError } from "../../spec/errors.ts";
import { isReadOnly } from "../../spec/kernel/tree.ts";
import { printWgsl, type WgslOptions } from "../../spec/kernel/wgsl/wgsl.ts";
import type { DeviceKernel } from "../device.ts";
import type { DeviceBuffer } from "../device.ts";

/** A compiled kernel. */
export class GpuPipeline {
  readonly name: string;
  readonly gpu: GPUComputePipeline;
  readonly #device: GPUDevice;
  readonly #layout: GPUBindGroupLayout;
  readonly #bindings: number;
  readonly #groups = new WeakMap<readonly DeviceBuffer[], GPUBindGroup>();

  private constructor(
    name: string,
    gpu: GPUComputePipeline,
    device: GPUDevice,
    layout: GPUBindGroupLayout,
    bindings: number,
  ) {
    this.name = name;
    this.gpu = gpu;
    this.#device = device;
    this.#layout = layout;
    this.#bindings = bindings;
  }

  /** Compiles the kernel. The text of a WGSL error reaches the user. */
  static async create(
    device: GPUDevice,
    name: string,
    kernel: DeviceKernel,
    { deviceName, wgsl }: {
      readonly deviceName: string;
      readonly wgsl: WgslOptions;
    },
  ): Promise<GpuPipeline> {
    const entries = kernel.tree.bindings.map((
      declared,
      binding,
    ): GPUBindGroupLayoutEntry => ({
      binding,
      visibility: 4, // GPUShaderStage.COMPUTE
      buffer: { type: isReadOnly(declared) ? "read-only-storage" : "storage" },
    }));
    device.pushErrorScope("validation");
    const layout = device.createBindGroupLayout({ entries, label: name });
    const module = device.createShaderModule({
      code: kernel.wgsl ?? printWgsl(kernel.tree, wgsl),
      label: name,
    });
    const compiled = device.createComputePipelineAsync({
      label: name,
      layout: device.createPipelineLayout({ bindGroupLayouts: [layout] }),
      compute: { module },
    }).catch((error: unknown) => error);
    const scope = await device.popErrorScope();
    const pipeline = await compiled;
    if (scope === null && !(pipeline instanceof Error)) {
      return new GpuPipeline(
        name,
        pipeline as GPUComputePipeline,
        device,
        layout,
        entries.length,
      );
    }
    const { messages } = await module.getCompilationInfo();
    const text = messages.filter((m) => m.type === "error")
      .map((m) => `${m.lineNum}:${m.linePos} ${m.message}`).join("; ");
    throw new MachineError(
      `Cannot compile kernel '${name}' on device '${deviceName}': ${
        text || scope?.message || String(pipeline)
      }`,
    );
  }

  /** The bind group of `buffers`, cached for the lifetime of a frozen array. */
  bind(
    buffers: readonly DeviceBuffer[],
    range: (buffer: DeviceBuffer) => GPUBufferBinding,
  ): GPUBindGroup {
    const known = this.#groups.get(buffers);
    if (known) return known;
    const group = this.#device.createBindGroup({
      layout: this.#layout,
      entries: buffers.map((buffer, binding) => ({
        binding,
        resource: range(buffer),
      })),
    });
    if (Object.isFrozen(buffers)) this.#groups.set(buffers, group);
    return group;
  }

  /** Launches one workgroup on small zero buffers; out-of-bounds accesses are harmless in WebGPU. */
  warmUp(): void {
    const buffers = Array.from(
      { length: this.#bindings },
      () => this.#device.createBuffer({ size: 256, usage: 0x80 }),
    );
    const encoder = this.#device.createCommandEncoder();
    const pass = encoder.beginComputePass();
    pass.setPipeline(this.gpu);
    pass.setBindGroup(
      0,
      this.#device.createBindGroup({
        layout: this.#layout,
        entries: buffers.map((buffer, binding) => ({
          binding,
          resource: { buffer },
        })),
      }),
    );
    pass.dispatchWorkgroups(1);
    pass.end();
    this.#device.queue.submit([encoder.finish()]);
    for (const buffer of buffers) buffer.destroy();
  }
}
