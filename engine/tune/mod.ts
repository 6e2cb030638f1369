/** Tuning kernels for the devices of a run. */

export * from "./kept.ts";
export * from "./tune.ts";
