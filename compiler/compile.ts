/** The main flow: a model and a mesh become a plan. */

import type { Plan } from "../spec/plan/plan.ts";
import { compileLowered, type CompileOptions } from "./compile_graph.ts";
import {
  compileTrainingLowered,
  type CompileTrainingOptions,
} from "./compile_training.ts";
import { markCompiled } from "./compiled.ts";
import type { Model } from "./dsl/model.ts";
import type { Graph } from "./graph/graph.ts";
import { trace } from "./graph/trace.ts";
import { lowerScalars } from "./scalars.ts";

/**
 * Compile a model to a plan.
 *
 * Throws ModelError, LowerError or PlacementError for mistakes in the model or the mesh, MachineError where the limits do not allow it.
 */
export async function compile(
  model: Model,
  options: CompileOptions = {},
): Promise<Plan> {
  return await compileGraph(trace(model), options);
}

/**
 * Compile a step of training a model: its loss, the gradients of the loss by every parameter, and their updates. The
 * program has the inputs of the model, `learning_rate` and, where the optimizer counts, `step` (from 1); outputs are the
 * model's and `gradient_norm`. Weights and the optimizer state stay on the ranks from step to step. See
 * spec/training.md.
 *
 * Throws as `compile`, and ModelError where the model has no such loss or something in it has no derivative.
 */
export async function compileTraining(
  model: Model,
  options: CompileTrainingOptions,
): Promise<Plan> {
  const graph = trace(model, { training: true });
  return markCompiled(
    compileTrainingLowered(graph, await lowerScalars(graph), options),
  );
}

/** Compile a traced graph. */
export async function compileGraph(
  traced: Graph,
  options: CompileOptions = {},
): Promise<Plan> {
  return markCompiled(
    compileLowered(traced, await lowerScalars(traced), options),
  );
}
