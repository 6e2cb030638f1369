/** Executes plans on devices. It is independent of models and the compiler. */

export * from "./adapters.ts";
export * from "./communicator.ts";
export * from "./device.ts";
export * from "./executor.ts";
export { adapterOf, type GpuAdapter } from "./gpu.ts";
export * from "./gpu_device.ts";
export { narrow } from "./half.ts";
export * from "./host_tensor.ts";
export { checkInputNames, type Inputs } from "./inputs.ts";
export { heldIndices } from "./persistent.ts";
export { RankMemory } from "./memory.ts";
export * from "./profiler.ts";
export { type RankTimes, rankTimes } from "./rank_times.ts";
export { type RunCounts } from "./run_counts.ts";
export { type LocalItems, localItems } from "./local_items.ts";
export * from "./safetensors.ts";
export * from "./session.ts";
export { equalWeights } from "./shared_weights.ts";
export {
  type Compared,
  type RankStatistics,
  type Statistics,
} from "./statistics.ts";
export { fileShape, type WeightForm, weightForm } from "./weight_form.ts";
