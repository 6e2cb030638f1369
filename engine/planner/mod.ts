/**
 * The planner: predicts a model on a machine that need not be present. `summary` compiles and states memory and
 * traffic, `simulate` predicts times, `search` chooses mesh and strategy, `machine` measures a machine.
 */

export {
  type MachineMeter,
  type MeasureMachineOptions,
  openMachineMeter,
} from "./machine/measure_machine.ts";
export {
  type Batch as SearchBatch,
  type ClaimedResults,
  type CurvePoint,
  type Found,
  helpSearch,
  knownOf,
  meshName,
  meshOf,
  type Objective,
  search,
  SEARCH_NUMERICS,
  type Searched,
  type SearchHelper,
  type SearchPhase,
  type SearchTask,
} from "./search/mod.ts";
export { type ExpertLoad, recordedLoad } from "./simulate/mod.ts";
export { forMachine } from "./summary/compiled.ts";
export {
  planSummary,
  type Summarized,
  summarizeTarget,
  type SummarizeTargetOptions,
  type SummaryOptions,
} from "./summary/mod.ts";
export { trainedDType } from "./summary/training.ts";
