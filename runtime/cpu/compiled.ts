/** Kernels as compiled modules. Devices that are opened one after the other, of one model, share them. */

import type { Kernel } from "../../spec/kernel/tree.ts";
import { printKernels } from "./print.ts";
import { type CompiledModule, webAssembly } from "./web_assembly.ts";

/** Modules that are kept: those which were used last. */
const MAX_CACHED = 8;

/** Kernels that were printed and compiled. */
export interface CompiledKernels {
  readonly module: CompiledModule;
  /** Bytes of scratch memory that each kernel needs, in order. */
  readonly scratch: readonly number[];
}

const cached = new Map<string, CompiledKernels>();

/** Print and compile kernels, in the order of their JSON texts, unless that was done lately. */
export async function compileKernels(
  kernels: ReadonlyMap<string, Kernel>,
): Promise<CompiledKernels> {
  const key = [...kernels.keys()].join("\n");
  const compiled = cached.get(key) ?? await compile([...kernels.values()]);
  cached.delete(key);
  cached.set(key, compiled);
  for (const oldest of cached.keys()) {
    if (cached.size <= MAX_CACHED) break;
    cached.delete(oldest);
  }
  return compiled;
}

async function compile(kernels: readonly Kernel[]): Promise<CompiledKernels> {
  const { bytes, scratch } = printKernels(kernels);
  return { module: await webAssembly.compile(bytes), scratch };
}
