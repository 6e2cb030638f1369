/** Runs one kernel on a target with plain arrays: the same tests serve the GPU and, when plugged in, the CPU engine. */

import { create, globals } from "webgpu";
import type { Binding, Kernel } from "../../spec/kernel/tree.ts";
import { printWgsl } from "../../spec/kernel/wgsl.ts";

Object.assign(globalThis, globals);

/** Contents of a buffer. */
export type Words = Float32Array | Int32Array | Uint32Array;

/** Something that can run kernels. Buffers by binding name; those the kernel writes are replaced by what it wrote. */
export interface KernelTarget {
  readonly name: string;
  run(
    kernel: Kernel,
    buffers: { readonly [binding: string]: Words },
    workgroups: readonly [number, number, number],
  ): Promise<{ [binding: string]: Words }>;
}

const ARRAYS = { f32: Float32Array, i32: Int32Array, u32: Uint32Array };

/** The words as the binding's type. */
export function typed(binding: Binding, bytes: ArrayBuffer): Words {
  return new ARRAYS[binding.type](bytes);
}

/** A GPU as a target, or undefined where there is none. */
export async function gpuTarget(): Promise<KernelTarget | undefined> {
  const gpu = create([]);
  // The binding crashes if this object is collected while a device lives.
  Object.assign(globalThis, { keptGpu: gpu });
  const adapter = await gpu.requestAdapter();
  if (!adapter) return undefined;
  const device = await adapter.requestDevice();
  const pipelines = new Map<string, GPUComputePipeline>();

  function pipelineOf(kernel: Kernel): GPUComputePipeline {
    const code = printWgsl(kernel);
    const known = pipelines.get(code);
    if (known) return known;
    const layout = device.createBindGroupLayout({
      entries: kernel.bindings.map((b, binding) => ({
        binding,
        visibility: GPUShaderStage.COMPUTE,
        buffer: { type: b.access === "read" ? "read-only-storage" : "storage" },
      })),
    });
    const pipeline = device.createComputePipeline({
      layout: device.createPipelineLayout({ bindGroupLayouts: [layout] }),
      compute: { module: device.createShaderModule({ code }) },
    });
    pipelines.set(code, pipeline);
    return pipeline;
  }

  return {
    name: `gpu ${adapter.info.description || adapter.info.vendor}`,
    async run(kernel, buffers, workgroups) {
      device.pushErrorScope("validation");
      const pipeline = pipelineOf(kernel);
      const { STORAGE, COPY_SRC, COPY_DST, MAP_READ } = GPUBufferUsage;
      const made = kernel.bindings.map((b) => {
        const words = buffers[b.name];
        if (!words) throw new Error(`no buffer for binding '${b.name}'`);
        const buffer = device.createBuffer({
          size: Math.max(4, words.byteLength),
          usage: STORAGE | COPY_SRC | COPY_DST,
        });
        device.queue.writeBuffer(buffer, 0, words.slice());
        return buffer;
      });
      const encoder = device.createCommandEncoder();
      if (workgroups.every((n) => n > 0)) {
        const pass = encoder.beginComputePass();
        pass.setPipeline(pipeline);
        pass.setBindGroup(
          0,
          device.createBindGroup({
            layout: pipeline.getBindGroupLayout(0),
            entries: made.map((buffer, binding) => ({
              binding,
              resource: { buffer },
            })),
          }),
        );
        pass.dispatchWorkgroups(...workgroups);
        pass.end();
      }
      const written = kernel.bindings.flatMap((b, i) => {
        if (b.access === "read") return [];
        const from = made[i]!;
        const to = device.createBuffer({
          size: from.size,
          usage: COPY_DST | MAP_READ,
        });
        encoder.copyBufferToBuffer(from, 0, to, 0, from.size);
        return [{ binding: b, buffer: to }];
      });
      device.queue.submit([encoder.finish()]);
      const error = await device.popErrorScope();
      if (error) {
        throw new Error(`${error.message}\n${printWgsl(kernel)}`);
      }
      const results: { [binding: string]: Words } = {};
      for (const { binding, buffer } of written) {
        await buffer.mapAsync(GPUMapMode.READ);
        const bytes = buffer.getMappedRange().slice(0);
        const words = typed(binding, bytes);
        results[binding.name] = words.slice(0, buffers[binding.name]!.length);
        buffer.destroy();
      }
      for (const buffer of made) buffer.destroy();
      return results;
    },
  };
}

/** The bits of f32 values, for exact comparisons. */
export function bits(words: Words): number[] {
  return [...new Uint32Array(words.slice().buffer)];
}
