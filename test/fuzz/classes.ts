/** The classes of `npm run fuzz`. */

import type { FuzzClass } from "./fuzz.ts";
import { GPU, kernelClass, NATIVE, WGPU } from "./kernel.ts";
import { diskClass } from "./disk.ts";
import { cacheClass } from "./cache.ts";
import { configClass } from "./config.ts";
import { determinismClass } from "./determinism.ts";
import { locksClass } from "./locks.ts";
import { ggufClass } from "./gguf.ts";
import { largeClass } from "./large.ts";
import { lengthsClass } from "./lengths.ts";
import { modelClass } from "./model.ts";
import { planClass } from "./plan.ts";
import { productsClass } from "./products.ts";
import { safetensorsClass } from "./safetensors.ts";
import { serveClass } from "./serve.ts";
import { writesClass } from "./writes.ts";
import { templateClass, tokenizerClass } from "./text.ts";

/** Classes by name, created on demand. */
export const CLASSES: {
  readonly [name: string]: () => FuzzClass<unknown>;
} = {
  kernel: () => kernelClass() as FuzzClass<unknown>,
  "kernel-native": () => kernelClass(NATIVE) as FuzzClass<unknown>,
  "kernel-gpu": () => kernelClass(GPU) as FuzzClass<unknown>,
  "kernel-wgpu": () => kernelClass(WGPU) as FuzzClass<unknown>,
  products: () => productsClass() as FuzzClass<unknown>,
  "products-native": () => productsClass(NATIVE) as FuzzClass<unknown>,
  "products-gpu": () => productsClass(GPU) as FuzzClass<unknown>,
  "products-wgpu": () => productsClass(WGPU) as FuzzClass<unknown>,
  plan: () => planClass() as FuzzClass<unknown>,
  determinism: () => determinismClass() as FuzzClass<unknown>,
  writes: () => writesClass() as FuzzClass<unknown>,
  lengths: () => lengthsClass() as FuzzClass<unknown>,
  cache: () => cacheClass() as FuzzClass<unknown>,
  large: () => largeClass() as FuzzClass<unknown>,
  disk: () => diskClass() as FuzzClass<unknown>,
  locks: () => locksClass() as FuzzClass<unknown>,
  model: () => modelClass() as FuzzClass<unknown>,
  safetensors: () => safetensorsClass() as FuzzClass<unknown>,
  gguf: () => ggufClass() as FuzzClass<unknown>,
  config: () => configClass() as FuzzClass<unknown>,
  tokenizer: () => tokenizerClass() as FuzzClass<unknown>,
  serve: () => serveClass() as FuzzClass<unknown>,
  template: () => templateClass() as FuzzClass<unknown>,
};
