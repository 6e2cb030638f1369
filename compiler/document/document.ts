/**
 * The document of a model: the source of a plan, as JSON. It contains no program text, so untrusted documents can be
 * read.
 */

import type { Collective } from "../graph/collectives.ts";
import type { DType } from "../../spec/dtype.ts";
import type { Span } from "../../spec/errors.ts";
import type { CompileOptions } from "../compile_graph.ts";
import type { CompileTrainingOptions } from "../compile_training.ts";
import type {
  AxisSize,
  Expanded,
  Primitive,
  PrimitiveParams,
  ScalarFunction,
} from "../graph/graph.ts";
import type { TuningTable } from "../tuning/table.ts";

/** Primitives of the language. Differentiation, placement and expansion create the others. */
export type ModelPrimitive = Exclude<
  Primitive,
  | Collective
  | Expanded
  | "attentionGrad"
  | "attentionSum"
  | "combineTranspose"
>;

/** Parameters in a document. Scalar functions are stored lowered. */
export type DocumentParams<P extends ModelPrimitive = ModelPrimitive> =
  P extends "map" ? { readonly op: string; readonly fn: ScalarFunction }
    : PrimitiveParams[P];

/** A node. Operands are offsets to earlier nodes. */
export interface NodeDocument {
  readonly primitive: ModelPrimitive;
  readonly inputs: readonly number[];
  readonly params: DocumentParams;
  /** Declared type. Other nodes have the type of their rule. */
  readonly given?: { readonly axes: readonly string[]; readonly dtype: DType };
  readonly span?: Span;
  /** Block of the node. */
  readonly block?: string;
}

/** Options of `compile` without functions. */
export interface DocumentOptions extends Omit<CompileOptions, "tuning"> {
  readonly tuning?: TuningTable;
}

/** Additional options of a training step. */
export type DocumentTraining = Omit<
  CompileTrainingOptions,
  keyof CompileOptions
>;

/** The document. */
export interface ModelDocument {
  /** Axes declared by the model. */
  readonly axes: { readonly [name: string]: AxisSize };
  /** All nodes, operands before users, with repeats. */
  readonly nodes: readonly unknown[];
  /** Outputs of the model by name: indices of nodes. */
  readonly returns: readonly {
    readonly name: string;
    readonly node: number;
  }[];
  readonly options: DocumentOptions;
  /** Absent: the plan is of the model itself. */
  readonly training?: DocumentTraining;
}

/** Nodes with a declared type. */
export const GIVEN: ReadonlySet<Primitive> = new Set<Primitive>([
  ...["input", "param", "state", "transpose", "cast", "scatterAdd"] as const,
]);
