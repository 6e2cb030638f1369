/** The main flow: compiles a model for a mesh to a plan. */

import { checkOptions } from "../spec/options.ts";
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
import {
  COMPILE_OPTIONS,
  COMPILE_TRAINING_OPTIONS,
  PAGES,
  TUNING,
} from "./option_names.ts";
import { lowerScalars } from "./scalars.ts";

/**
 * Compiles a model to a plan.
 *
 * Throws ModelError, LowerError or PlacementError for mistakes in the model or the mesh, and MachineError if the limits
 * are exceeded, DataError for an unknown option.
 */
export async function compile(
  model: Model,
  options: CompileOptions = {},
): Promise<Plan> {
  checkOptions("compile a model", options, COMPILE_OPTIONS);
  checkFields(options);
  return await compileGraph(trace(model), options);
}

/**
 * Compiles a training step: the loss of a model, its gradients by every parameter, and the updates. The program has the
 * inputs of the model, `learning_rate` and, if the optimizer counts, `step` (from 1). Its outputs are those of the
 * model and `gradient_norm`. Weights and optimizer state stay on the ranks between steps. See spec/training.md.
 *
 * Throws as `compile`, and ModelError if the model has no such loss, or if a node has no derivative.
 */
export async function compileTraining(
  model: Model,
  options: CompileTrainingOptions,
): Promise<Plan> {
  checkOptions("compile a training step", options, COMPILE_TRAINING_OPTIONS);
  checkFields(options);
  const graph = trace(model, { training: true });
  return markCompiled(
    compileTrainingLowered(graph, await lowerScalars(graph), options),
  );
}

/** Compiles a traced graph. */
export async function compileGraph(
  traced: Graph,
  options: CompileOptions = {},
): Promise<Plan> {
  return markCompiled(
    compileLowered(traced, await lowerScalars(traced), options),
  );
}

/** Rejects unknown fields of options. */
function checkFields({ pages, tuning = {} }: CompileOptions): void {
  checkOptions("tune kernels", tuning, TUNING);
  if (typeof pages !== "object") return;
  checkOptions("compile a paged KV cache", pages, PAGES);
}
