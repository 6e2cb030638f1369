/** Runs one kernel on a GPU or the CPU with arrays, so that tests of kernels cover both. */

import type fc from "fast-check";
import t, { type Test } from "tap";
import { create, globals } from "webgpu";
import type { Grid } from "../../compiler/kernels/mod.ts";
import { createCpuDevice, openCpuPool } from "../../runtime/cpu/mod.ts";
import { describeAdapter, requestAdapter } from "../../runtime/gpu/gpu.ts";
import { politely } from "../../runtime/gpu/politely.ts";
import { evaluateSize } from "../../spec/size.ts";
import { add, load, mul, u32 } from "../../spec/kernel/build.ts";
import type { Binding, Expr, Kernel } from "../../spec/kernel/tree.ts";
import { printWgsl } from "../../spec/kernel/wgsl/wgsl.ts";
import {
  gpuIsSoftware,
  isInGpuTurn,
  skipUnasked,
  skipWithoutGpu,
} from "./needs.ts";
import { holdsFor } from "./seed.ts";

const { GPUBufferUsage, GPUMapMode, GPUShaderStage } =
  globals as typeof globalThis;

export type Words = Float32Array | Int32Array | Uint32Array;

/** Device that runs kernels. `run` returns the contents of bindings that the kernel writes. */
export interface KernelTarget {
  readonly name: string;
  /** Whether it is a software GPU. */
  readonly software: boolean;
  run(
    kernel: Kernel,
    buffers: { readonly [binding: string]: Words },
    workgroups: readonly [number, number, number],
  ): Promise<{ [binding: string]: Words }>;
}

const ARRAYS = { f32: Float32Array, i32: Int32Array, u32: Uint32Array };

/** Returns words with the type of the binding. */
export function typed(binding: Binding, bytes: ArrayBuffer): Words {
  return new ARRAYS[binding.type](bytes);
}

/** Loads from a row-major matrix: element row * length + i. */
export function rowMajor(
  binding: string,
  length: number,
): (row: Expr, i: Expr) => Expr {
  return (row, i) => load(binding, add(mul(row, u32(length)), i));
}

/** Opens a GPU. Undefined: there is none. */
export async function gpuTarget(): Promise<KernelTarget | undefined> {
  const gpu = create([]);
  // The binding crashes if this object is garbage collected before a device.
  Object.assign(globalThis, { retainedGpu: gpu });
  const adapter = await politely(gpu.requestAdapter());
  if (!adapter) return undefined;
  const { type, subgroup: size, packedDot } = describeAdapter(adapter, {
    number: 0,
    gpu,
    request: () => requestAdapter(gpu),
  });
  const subgroup = type === "software" ? size : undefined;
  const device = await politely(adapter.requestDevice({
    requiredFeatures: subgroup ? ["subgroups"] : [],
    requiredLimits: {
      maxComputeWorkgroupStorageSize:
        adapter.limits.maxComputeWorkgroupStorageSize,
      maxStorageBuffersPerShaderStage:
        adapter.limits.maxStorageBuffersPerShaderStage,
      maxComputeInvocationsPerWorkgroup:
        adapter.limits.maxComputeInvocationsPerWorkgroup,
      maxComputeWorkgroupSizeX: adapter.limits.maxComputeWorkgroupSizeX,
    },
  }));
  const pipelines = new Map<string, GPUComputePipeline>();

  async function pipelineOf(kernel: Kernel): Promise<GPUComputePipeline> {
    const code = printWgsl(kernel, { subgroup, packedDot });
    const known = pipelines.get(code);
    if (known) return known;
    const layout = device.createBindGroupLayout({
      entries: kernel.bindings.map((b, binding) => ({
        binding,
        visibility: GPUShaderStage.COMPUTE,
        buffer: { type: b.access === "read" ? "read-only-storage" : "storage" },
      })),
    });
    const module = device.createShaderModule({ code });
    const { messages } = await politely(module.getCompilationInfo());
    if (messages.length > 0) {
      const lines = messages.map((m) => `${m.lineNum}: ${m.message}`);
      throw new Error([...lines, code].join("\n"));
    }
    const pipeline = device.createComputePipeline({
      layout: device.createPipelineLayout({ bindGroupLayouts: [layout] }),
      compute: { module },
    });
    pipelines.set(code, pipeline);
    return pipeline;
  }

  return {
    name: `gpu ${adapter.info.description || adapter.info.vendor}`,
    software: gpuIsSoftware,
    async run(kernel, buffers, workgroups) {
      device.pushErrorScope("validation");
      const pipeline = await pipelineOf(kernel);
      const { STORAGE, COPY_SRC, COPY_DST, MAP_READ } = GPUBufferUsage;
      const created = kernel.bindings.map((b) => {
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
            entries: created.map((buffer, binding) => ({
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
        const from = created[i]!;
        const to = device.createBuffer({
          size: from.size,
          usage: COPY_DST | MAP_READ,
        });
        encoder.copyBufferToBuffer(from, 0, to, 0, from.size);
        return [{ binding: b, buffer: to }];
      });
      device.queue.submit([encoder.finish()]);
      const error = await politely(device.popErrorScope());
      if (error) {
        throw new Error(
          `${error.message}\n${printWgsl(kernel, { subgroup, packedDot })}`,
        );
      }
      const results: { [binding: string]: Words } = {};
      for (const { binding, buffer } of written) {
        await politely(buffer.mapAsync(GPUMapMode.READ));
        const bytes = buffer.getMappedRange().slice(0);
        const words = typed(binding, bytes);
        results[binding.name] = words.slice(0, buffers[binding.name]!.length);
        buffer.destroy();
      }
      for (const buffer of created) buffer.destroy();
      return results;
    },
  };
}

/** Opens a CPU device. */
export async function cpuTarget(): Promise<KernelTarget> {
  const pool = await openCpuPool(2, { store: undefined });
  return {
    name: "cpu",
    software: false,
    async run(kernel, buffers, workgroups) {
      const device = await createCpuDevice({ pool });
      await device.prepare({ kernel: { tree: kernel } });
      const created = kernel.bindings.map((b) => {
        const words = buffers[b.name];
        if (!words) throw new Error(`no buffer for binding '${b.name}'`);
        const buffer = device.createBuffer(
          Math.max(4, words.byteLength),
          b.name,
        );
        device.write(buffer, 0, new Uint8Array(words.slice().buffer));
        return buffer;
      });
      device.launch("kernel", created, workgroups);
      const results: { [binding: string]: Words } = {};
      for (const [i, b] of kernel.bindings.entries()) {
        if (b.access === "read") continue;
        const bytes = await device.read(created[i]!, 0, created[i]!.bytes);
        const words = typed(b, bytes.slice().buffer);
        results[b.name] = words.slice(0, buffers[b.name]!.length);
      }
      device.destroy();
      return results;
    },
  };
}

/** Returns the bits of f32 values. */
export function bits(words: Words): number[] {
  return [...new Uint32Array(words.slice().buffer)];
}

/**
 * Creates a test on the CPU, and one on a GPU, which is skipped if there is none. A software GPU runs a fifth of the
 * tests, in rotation.
 */
export function testKernels(
  name: string,
  body: (t: Test, target: KernelTarget) => Promise<void>,
): void {
  const on = (target: KernelTarget) => async (t: Test) => {
    running = { t, target };
    await body(t, target);
  };
  t.test(name, { skip: skipUnasked("cpu") }, on(cpu));
  if (!isInGpuTurn(name)) return;
  const skip = skipWithoutGpu;
  t.test(`${name}, on a GPU`, { skip }, async (t) => {
    if (gpu) await on(gpu)(t);
  });
}

const cpu = await cpuTarget();
const gpu = await gpuTarget();

/** The running test: tap runs the tests of a file in sequence. */
let running: { readonly t: Test; readonly target: KernelTarget } | undefined;

/**
 * Checks a property with `runs` random cases; three times as many on the CPU. A software GPU takes seconds to compile a
 * kernel, so it runs a fifth of the cases; each run of the tests draws new ones.
 */
export async function holds<T>(
  values: fc.Arbitrary<T>,
  property: (value: T) => Promise<void>,
  runs = 5,
): Promise<void> {
  if (!running) throw new Error("Cannot hold a property outside testKernels");
  const { t, target } = running;
  const often = target === cpu
    ? 3 * runs
    : target.software
    ? Math.ceil(runs / 5)
    : runs;
  await holdsFor(t, values, { check: property, runs: often });
}

/** Evaluates a grid without dynamic lengths. */
export function workgroups(grid: Grid): [number, number, number] {
  const [x, y, z] = grid.map((size) => evaluateSize(size, () => NaN));
  return [x!, y!, z!];
}

/** Returns the rows of a row-major matrix. */
export function rowsOf(words: Words, columns: number): number[][] {
  return Array.from(
    { length: words.length / columns },
    (_, r) => [...words.subarray(r * columns, (r + 1) * columns)],
  );
}

/** Fails unless all values are within `tolerance` of the expected ones, relative for values above 1. */
export function close(
  t: Test,
  actual: Words,
  expected: readonly number[],
  tolerance = 1e-5,
): void {
  t.equal(actual.length, expected.length, "number of values");
  const worst = expected.reduce((worst, x, i) => {
    const error = Math.abs(actual[i]! - x) / Math.max(1, Math.abs(x));
    return error <= worst ? worst : error;
  }, 0);
  // A NaN fails too.
  t.ok(worst <= tolerance, `error ${worst}`);
}
