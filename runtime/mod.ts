/** Executes plans on devices. It is independent of models and the compiler. */

export * from "./gpu/adapters.ts";
export * from "./exchange/communicator.ts";
export * from "./device.ts";
export * from "./executor.ts";
export { adapterOf, type GpuAdapter } from "./gpu/gpu.ts";
export * from "./gpu/device.ts";
export { narrow } from "./half.ts";
export * from "./host_tensor.ts";
export { checkInputNames, checkTensors, type Inputs } from "./inputs.ts";
export { heldIndices } from "./persistent.ts";
export { RankMemory } from "./memory.ts";
export * from "./profiler.ts";
export { type RankTimes, rankTimes } from "./rank_times.ts";
export { type RunCounts } from "./run_counts.ts";
export { type LocalItems, localItems } from "./local_items.ts";
export * from "./weights/safetensors.ts";
export * from "./session.ts";
export { equalWeights } from "./weights/shared.ts";
export {
  type Compared,
  type RankStatistics,
  type Statistics,
} from "./statistics.ts";
export { fileShape, type WeightForm, weightForm } from "./weights/form.ts";
