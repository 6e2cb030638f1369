/** Kernels as compiled modules. Devices that are opened one after the other, of one model, share them. */

import type { Kernel } from "../../spec/kernel/tree.ts";
import { printKernels } from "./print.ts";
import { type CompiledModule, webAssembly } from "./web_assembly.ts";

/** Modules that are kept: those which were used last. */
const KEPT = 8;

/** Kernels that were printed and compiled. */
export interface CompiledKernels {
  readonly module: CompiledModule;
  /** Bytes of scratch memory that each kernel needs, in order. */
  readonly scratch: readonly number[];
}

const kept = new Map<string, CompiledKernels>();

/** Print and compile kernels, in the order of their JSON texts, unless that was done lately. */
export async function compileKernels(
  kernels: ReadonlyMap<string, Kernel>,
): Promise<CompiledKernels> {
  const key = [...kernels.keys()].join("\n");
  const compiled = kept.get(key) ?? await compile([...kernels.values()]);
  kept.delete(key);
  kept.set(key, compiled);
  for (const oldest of kept.keys()) {
    if (kept.size <= KEPT) break;
    kept.delete(oldest);
  }
  return compiled;
}

async function compile(kernels: readonly Kernel[]): Promise<CompiledKernels> {
  const { bytes, scratch } = printKernels(kernels);
  return { module: await webAssembly.compile(bytes), scratch };
}
