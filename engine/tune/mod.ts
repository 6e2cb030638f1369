/** Tuning of kernels for the devices of a run. */

export * from "./saved.ts";
export * from "./tune.ts";
