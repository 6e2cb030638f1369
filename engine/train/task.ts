/** What is trained, whatever it comes from: a checkpoint on text, or what a model file exports. */

import type { Model } from "../../compiler/mod.ts";
import type { FileDType } from "../../spec/dtype.ts";
import type { Plan, Program } from "../../spec/plan/plan.ts";
import type { PlanOptions } from "../open.ts";
import type { Tensors } from "../run.ts";
import type { SavedSettings } from "./settings.ts";

/** Inputs of a model, and what its loss counts for beside those of others: its labels that count. */
export interface WeighedBatch {
  readonly inputs: Tensors;
  readonly counted: number;
}

/** The program that runs on a batch, and the ranks of this process: what they do not get of it may be zeros. */
export interface BatchPlace {
  readonly plan: Plan;
  readonly program: Program;
  readonly ranks: readonly number[];
}

/** Batches by which the loss is measured without training on them. */
export interface ValidationBatches {
  readonly count: number;
  /** Batch `index`, from 0. */
  at(index: number, place: BatchPlace): Promise<WeighedBatch>;
}

/** A training, ready to be compiled. */
export interface Task extends Pick<PlanOptions, "mesh" | "place"> {
  /** The model, with its loss among its outputs. */
  readonly model: Model;
  /** The output to make smaller. */
  readonly loss: string;
  readonly settings: SavedSettings;
  /** What source tensors are stored as, where not as f32. */
  readonly weights?: { readonly [tensor: string]: FileDType };
  /** What tells the data from others. */
  readonly text: string;
  /** Sequences, or else batches, that a step takes. */
  readonly taken: number;
  /** Tokens of a step; 0 where there are none. */
  readonly tokens: number;
  readonly validation: ValidationBatches | undefined;
  /** Where weights come from, for messages. */
  readonly where: string;
  /** Every parameter before the first step. */
  initial(plan: Plan): Promise<Tensors>;
  /** Batch `index` over all steps, from 0. */
  batch(index: number, place: BatchPlace): Promise<WeighedBatch>;
  /** Make the folder of checkpoints, with what is the same in all of them. */
  prepare(out: string, plan: Plan): Promise<void>;
  /** Give back what batches are read from. */
  close(): Promise<void>;
}
