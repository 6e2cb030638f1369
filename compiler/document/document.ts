/** The document of a model: what a plan is compiled from, as JSON. It holds no program text, so it may be untrusted input. */

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

/** Primitives that the language makes. Others are made of them: by differentiation, by placement, and by expansion. */
export type ModelPrimitive = Exclude<
  Primitive,
  | Collective
  | Expanded
  | "attentionGrad"
  | "attentionSum"
  | "combineTranspose"
>;

/** Parameters as a document has them: of a scalar function, what it was lowered to. */
export type DocumentParams<P extends ModelPrimitive = ModelPrimitive> =
  P extends "map" ? { readonly op: string; readonly fn: ScalarFunction }
    : PrimitiveParams[P];

/** A node. Its operands are so many nodes before it. */
export interface NodeDocument {
  readonly primitive: ModelPrimitive;
  readonly inputs: readonly number[];
  readonly params: DocumentParams;
  /** The type that it is declared with; the others have what their rule says. */
  readonly given?: { readonly axes: readonly string[]; readonly dtype: DType };
  readonly span?: Span;
  /** The block that it is written in. */
  readonly block?: string;
}

/** Options of `compile`, without functions. */
export interface DocumentOptions extends Omit<CompileOptions, "tuning"> {
  readonly tuning?: TuningTable;
}

/** What a step of training has besides. */
export type DocumentTraining = Omit<
  CompileTrainingOptions,
  keyof CompileOptions
>;

/** The document. */
export interface ModelDocument {
  /** The axes that the model declares. */
  readonly axes: { readonly [name: string]: AxisSize };
  /** Every node that is needed, operands before users; what repeats is written once. */
  readonly nodes: readonly unknown[];
  /** What the model returns, by name: indices of nodes. */
  readonly returns: readonly {
    readonly name: string;
    readonly node: number;
  }[];
  readonly options: DocumentOptions;
  /** Absent: the plan is of the model itself. */
  readonly training?: DocumentTraining;
}

/** Nodes that are declared with a type. */
export const GIVEN: ReadonlySet<Primitive> = new Set<Primitive>([
  ...["input", "param", "state", "transpose", "cast", "scatterAdd"] as const,
]);
