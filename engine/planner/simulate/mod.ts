/** Predicts a step of a plan on a machine that need not be present. */

export { type ExpertLoad, recordedLoad } from "./loads.ts";
export { concurrentRuns } from "./rank_groups.ts";
export type { Workload } from "./workload.ts";
export { NO_PARTS, type Parts, type SpentTime } from "./clocks.ts";
export {
  type PredictedLayer,
  type Prediction,
  simulate,
  type SimulateOptions,
} from "./simulate.ts";
export { stepCosts } from "./step_costs.ts";
