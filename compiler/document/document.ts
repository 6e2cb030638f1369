/**
 * The document of a model: the source of a plan, as JSON. It contains no program text, so untrusted documents can be
 * read. `scripts/schemas.mjs` generates its schemas from these types: `maximum` tags bound every number that costs
 * compile time or memory.
 */

import type { Collective } from "../graph/collectives.ts";
import type { DType } from "../../spec/dtype.ts";
import type { Span } from "../../spec/errors.ts";
import type {
  AxisSet,
  RankCount,
  ShortRecord,
  ShortText,
} from "../../spec/values.ts";
import type { CompileOptions } from "../compile_graph.ts";
import type { CompileTrainingOptions } from "../compile_training.ts";
import type {
  AxisSize,
  Expanded,
  Primitive,
  PrimitiveParams,
  ScalarFunction,
} from "../graph/graph.ts";
import type { Pages } from "../passes/mod.ts";
import type { TuningTable } from "../tuning/table.ts";

/** Primitives whose parameters are different in a document. */
interface ChangedParams {
  /** The scalar function, lowered. */
  map: { readonly op: ShortText; readonly fn: ScalarFunction };
  /** Only placement sets the number of segments. */
  dot: Omit<PrimitiveParams["dot"], "segments">;
  /** Only a pass sets the stored dtype. */
  state: Omit<PrimitiveParams["state"], "stored">;
  /** Only gradients have partial sums on a rank. */
  scatterAdd: PrimitiveParams["scatterAdd"] & { readonly replicated: true };
  /** Only expansion pre-sums rows. */
  combine: Omit<PrimitiveParams["combine"], "once">;
}

/** Parameters of the primitives of the language. Differentiation, placement and expansion create the others. */
export interface DocumentParams extends
  Omit<
    PrimitiveParams,
    | keyof ChangedParams
    | Collective
    | Expanded
    | "attentionGrad"
    | "attentionSum"
    | "combineTranspose"
  >,
  ChangedParams {}

/** Primitives of the language. */
export type ModelPrimitive = keyof DocumentParams;

/** Primitives of nodes with a declared type. Other nodes have the type of their rule. */
const DECLARED = [
  "input",
  "param",
  "state",
  "transpose",
  "cast",
  "scatterAdd",
] as const satisfies readonly ModelPrimitive[];

type Declared = typeof DECLARED[number];

/** A node of a primitive. */
interface NodeDocumentOf<P extends ModelPrimitive> {
  readonly primitive: P;
  /**
   * Operands, as offsets to earlier nodes.
   *
   * @maxItems 1024
   */
  readonly inputs: readonly Offset[];
  readonly params: DocumentParams[P];
  readonly span?: Span;
  /**
   * Block of the node.
   *
   * @pattern ^[A-Za-z0-9_.-]{1,200}$
   */
  readonly block?: string;
}

/**
 * Number of nodes between two nodes.
 *
 * @integer
 * @minimum 1
 * @maximum MAX_NODES
 */
type Offset = number;

/** A node with its declared type. */
interface DeclaredNode<P extends Declared> extends NodeDocumentOf<P> {
  readonly given: {
    readonly axes: AxisSet;
    readonly dtype: Exclude<DType, "u32">;
  };
}

/** A node. */
export type NodeDocument =
  | {
    [P in Exclude<ModelPrimitive, Declared>]: NodeDocumentOf<P>;
  }[Exclude<ModelPrimitive, Declared>]
  | { [P in Declared]: DeclaredNode<P> }[Declared];

/**
 * The nodes of a document, with repeats expanded.
 *
 * @maxItems MAX_NODES
 */
export type NodeDocuments = readonly NodeDocument[];

/** Options of `compile` without functions. */
export interface DocumentOptions extends
  Omit<
    CompileOptions,
    "mesh" | "pages" | "recordSquares" | "tuning"
  > {
  readonly mesh?: ShortRecord<RankCount>;
  readonly pages?: Pages;
  readonly tuning?: TuningTable;
}

/** Additional options of a training step. */
export type DocumentTraining = Omit<
  CompileTrainingOptions,
  keyof CompileOptions
>;

/** An output of the model: the index of a node. */
interface Returned {
  readonly name: ShortText;
  /**
   * @integer
   * @minimum 0
   * @maximum MAX_NODES
   */
  readonly node: number;
}

/** The document. */
export interface ModelDocument {
  /**
   * Axes declared by the model.
   *
   * @maxProperties 4096
   */
  readonly axes: { readonly [name: string]: AxisSize };
  /** All nodes, operands before users, with repeats. */
  readonly nodes: readonly unknown[];
  /**
   * Outputs of the model.
   *
   * @maxItems MAX_NODES
   */
  readonly returns: readonly Returned[];
  readonly options: DocumentOptions;
  /** Absent: the plan is of the model itself. */
  readonly training?: DocumentTraining;
}

/** Primitives of nodes with a declared type. */
export const GIVEN: ReadonlySet<Primitive> = new Set<Primitive>(DECLARED);
