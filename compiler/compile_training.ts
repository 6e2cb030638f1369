/** From the graph of a model to the plan of a step of training it. */

import { withPartProgram } from "../spec/plan/part_program.ts";
import type { Plan } from "../spec/plan/plan.ts";
import { compileLowered, type CompileOptions } from "./compile_graph.ts";
import type { Scalars } from "./graph/gradients.ts";
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
   * What all parameters are stored as. Those in 16 bits have f32 masters, states that the optimizer updates and that
   * whoever loads the plan must write (`adamw.master.NAME`). Default: 16 bits where `weights` says so, else f32.
   */
  readonly dtype?: TrainedDType;
  /** Outputs, as far as there are such, of a second program, `validate`: it has the inputs of the model and changes no parameter. */
  readonly validate?: readonly string[];
}

/** The program of a training's plan that measures and does not train. */
export const VALIDATE = "validate";

/** The program for all batches of a step but the last, where gradients are added up over several. */
export const ACCUMULATE = "accumulate";

/** As `compileTraining`, of a graph that was traced for training and whose lambdas have been lowered. */
export function compileTrainingLowered(
  graph: Graph,
  scalars: Scalars,
  options: CompileTrainingOptions,
): Plan {
  const { dtype, weights: given = {} } = options;
  const { weights, masters } = storedForTraining(graph, given, dtype);
  const step = trainStep(graph, { ...options, masters }, scalars);
  const plan = compileLowered(step, scalars, { ...options, weights });
  const [{ outputs }] = plan.programs as [Plan["programs"][number]];
  const { accumulate = false, validate } = options;
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
    outputs: validate.filter((name) => name in outputs),
  });
}
