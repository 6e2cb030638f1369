/** The public language and the compiler. */

export * from "./dsl/mod.ts";
export {
  compile,
  type CompileOptions,
  compileTraining,
  type CompileTrainingOptions,
  type Tuning,
} from "./compile.ts";
export {
  type AdamW,
  type Optimizer,
  REMEMBERED,
  type Sgd,
} from "./graph/optimizers.ts";
export {
  GRADIENT_NORM,
  STEP_INPUTS,
  type TrainStepOptions,
} from "./graph/train_step.ts";
export type { AxisPlacement, Placement } from "./passes/place.ts";
export { trace, type TraceOptions } from "./graph/trace.ts";
export type { RoutingPreset } from "./graph/routing.ts";
export {
  DataError,
  LowerError,
  MachineError,
  ModelError,
  PlacementError,
  PlanError,
  type Span,
} from "../spec/errors.ts";
