/** What a step of a plan takes on a machine that need not be here. */

export { type ExpertLoad, recordedLoad } from "./loads.ts";
export type { Workload } from "./workload.ts";
export {
  type Parts,
  type PredictedLayer,
  type Prediction,
  simulate,
  type SimulateOptions,
  type SpentTime,
} from "./simulate.ts";
export { stepCosts } from "./step_costs.ts";
