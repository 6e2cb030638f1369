/** The public language and the compiler. */

import * as language from "./dsl/mod.ts";
import { nameOps } from "./dsl/tensor.ts";

export * from "./dsl/mod.ts";
export { setExample } from "./dsl/model.ts";
export { compile, compileGraph, compileTraining } from "./compile.ts";
export {
  ACCUMULATE,
  type CompileTrainingOptions,
  VALIDATE,
} from "./compile_training.ts";
export {
  type CompileOptions,
  heldBuffers,
  type ZeroStage,
} from "./compile_graph.ts";
export type {
  CacheDType,
  ChoosePages,
  HeldBuffer,
  Pages,
} from "./passes/mod.ts";
export {
  compileDocument,
  type DocumentTraining,
  modelDocument,
} from "./document/mod.ts";
export { type MatmulTile, tileHeight } from "./tuning/tile.ts";
export {
  matmulClass,
  type MatmulShape,
  MAX_RESULTS,
  ofHeight,
  tileName,
  type Tuning,
  type TuningTable,
} from "./tuning/table.ts";
export {
  adamw,
  type Batch,
  type Batches,
  isTraining,
  rateAt,
  type Schedule,
  sgd,
  train,
  type Training,
  type TrainingOptions,
} from "./training.ts";
export {
  type AdamW,
  MASTER,
  type Optimizer,
  OPTIMIZER_STATES,
  type Sgd,
} from "./graph/optimizers.ts";
export { microName } from "./graph/micro_batches.ts";
export {
  GRADIENT_NORM,
  STEP_INPUTS,
  type TrainStepOptions,
} from "./graph/train_step.ts";
export {
  adaptedParameter,
  type AdapterNames,
  adapterNames,
  type Adapters,
  fusedModules,
  isAdapter,
  isTrained,
  type TrainedParameters,
  withAdapters,
} from "./graph/adapters.ts";
export type { AxisPlacement, Placement } from "./sharding/placement.ts";
export { SQUARES } from "./graph/gradients/record_squares.ts";
export { type ParamFacts, paramFacts } from "./graph/param_facts.ts";
export type { TrainedDType } from "./graph/stored.ts";
export { trace, type TraceOptions } from "./graph/trace.ts";
export type { RoutingPreset } from "./graph/routing/presets.ts";
export {
  DataError,
  LowerError,
  MachineError,
  ModelError,
  PlacementError,
  PlanError,
  type Span,
} from "../spec/errors.ts";
export { DROPPED } from "./graph/routing/count_dropped.ts";
export { shown } from "../spec/shown.ts";
export { isOneSlip } from "../spec/near_name.ts";

nameOps(language);
