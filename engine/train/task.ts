/** A training task, independent of its origin: a checkpoint on text, or the export of a model file. */

import type { Model, TrainedParameters } from "../../compiler/mod.ts";
import type { FileDType } from "../../spec/dtype.ts";
import type { Plan, Program } from "../../spec/plan/plan.ts";
import type { Companion } from "../companions.ts";
import type { Opened, PlanOptions } from "../open.ts";
import type { Tensors } from "../run.ts";
import type { PolicyMetrics } from "./policy_metrics.ts";
import type { SavedSettings } from "./settings.ts";

/** Inputs of a model. */
export interface WeighedBatch {
  readonly inputs: Tensors;
  /** Weight in the loss: the number of counted labels, or the sum of their weights. */
  readonly counted: number;
  /** Number of tokens; 0 if there are none. */
  readonly tokens: number;
}

/** The program that runs on a batch, and the ranks of this process: parts for other ranks may be zeros. */
export interface BatchTarget {
  readonly plan: Plan;
  readonly program: Program;
  readonly ranks: readonly number[];
}

/** Validation batches. */
export interface ValidationBatches {
  readonly count: number;
  /** Batch `index`, from 0. */
  at(index: number, target: BatchTarget): Promise<WeighedBatch>;
}

/** A training, ready to be compiled. */
export interface Task extends Pick<PlanOptions, "mesh" | "place"> {
  /** The model, with its loss among its outputs. */
  readonly model: Model;
  /** The output to minimize. */
  readonly loss: string;
  readonly settings: SavedSettings;
  /** Storage dtypes of source tensors other than f32. */
  readonly weights?: { readonly [tensor: string]: FileDType };
  /** Identity of the data. */
  readonly text: string;
  /** Sequences, or batches, per step. */
  readonly taken: number;
  readonly validation: ValidationBatches | undefined;
  /** Source of the weights, for messages. */
  readonly where: string;
  /** Initial values of every parameter. */
  initial(plan: Plan): Promise<Tensors>;
  /** Batch `index` over all steps, from 0. */
  batch(index: number, target: BatchTarget): Promise<WeighedBatch>;
  /** Which parameters are trained. Default: all. */
  readonly trained?: TrainedParameters;
  /** Weight files of constant parameters, which checkpoints of the training do not contain. Default: none. */
  readonly constants?: readonly string[];
  /** Called after a checkpoint is written to a folder, on rank 0. */
  saved?(out: string): Promise<void>;
  /** Plans beside that of the training. Default: none. */
  readonly companions?: readonly Companion[];
  /** Outputs of a step that `observe` receives. */
  readonly outputs?: readonly string[];
  /** Steps that are saved together: a training is neither saved nor stopped between them. Default: 1. */
  readonly stepsPerSave?: number;
  /** Called before the first batch, with the opened plans. */
  begin?(opened: Opened): void;
  /** Metrics of a step from the outputs of each of its batches. Called after each step. */
  observe?(outputs: readonly Tensors[]): PolicyMetrics;
  /** Creates the folder of checkpoints with their common parts. */
  prepare(out: string, plan: Plan): Promise<void>;
  /** Closes the source of batches. */
  close(): Promise<void>;
}
