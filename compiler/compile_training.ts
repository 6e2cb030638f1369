/** Compiles the graph of a model to the plan of a training step. */

import { withPartProgram } from "../spec/plan/part_program.ts";
import type { ShortText } from "../spec/values.ts";
import type { Plan } from "../spec/plan/plan.ts";
import { compileLowered, type CompileOptions } from "./compile_graph.ts";
import { microName } from "./graph/micro_batches.ts";
import type { Scalars } from "./graph/gradients/gradients.ts";
import type { Graph } from "./graph/graph.ts";
import { storedForTraining, type TrainedDType } from "./graph/stored.ts";
import {
  accumulatedStates,
  trainStep,
  type TrainStepOptions,
} from "./graph/train_step.ts";

/** Options of `compileTraining`. */
export interface CompileTrainingOptions
  extends CompileOptions, Omit<TrainStepOptions, "masters"> {
  /**
   * Storage dtype of all parameters. 16-bit parameters have f32 master weights: states that the optimizer updates and
   * that the loader of the plan must initialize (`adamw.master.NAME`). Default: 16 bits if `weights` says so, else f32.
   */
  readonly dtype?: TrainedDType;
  /**
   * Outputs of a second program, `validate`, if they exist. It has the inputs of the model and writes no parameter.
   *
   * @maxItems 1024
   */
  readonly validate?: readonly ShortText[];
}

/** The validation program of a training plan. */
export const VALIDATE = "validate";

/** The program for all micro-batches of a step except the last. */
export const ACCUMULATE = "accumulate";

/** `compileTraining` for a graph that was traced for training and whose lambdas have been lowered. */
export function compileTrainingLowered(
  graph: Graph,
  scalars: Scalars,
  options: CompileTrainingOptions,
): Plan {
  const { dtype, trained, weights: given = {} } = options;
  const { weights, masters } = storedForTraining(graph, given, {
    dtype,
    trained,
  });
  const step = trainStep(graph, { ...options, masters }, scalars);
  const plan = compileLowered(step, scalars, { ...options, weights });
  const [{ outputs }] = plan.programs as [Plan["programs"][number]];
  const { accumulate = false, microBatches = 1, validate } = options;
  const accumulating = accumulate
    ? withPartProgram(plan, {
      name: ACCUMULATE,
      outputs: Object.keys(graph.outputs),
      states: accumulatedStates(graph, options),
    })
    : plan;
  if (validate === undefined) return accumulating;
  return withPartProgram(accumulating, {
    name: VALIDATE,
    outputs: validate.map((name) =>
      microBatches === 1 ? name : microName(name, 0)
    ).filter((name) => name in outputs),
  });
}
