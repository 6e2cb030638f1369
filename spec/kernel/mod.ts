/** The kernel tree, its constructors, its WGSL and its cost. */

export * from "./tree.ts";
export * as build from "./build.ts";
export { printWgsl } from "./wgsl/wgsl.ts";
export { kernelCost } from "./cost.ts";
export type { KernelCost } from "./cost.ts";
