/** What a lowering knows and collects: where each node's value is stored, and the buffers, kernels and steps so far. */

import type { NumericsClass } from "../../../spec/numerics.ts";
import type { StoredDType } from "../../../spec/dtype.ts";
import type { PackedDType } from "../../../spec/packed.ts";
import type { Kernel } from "../../../spec/kernel/tree.ts";
import type {
  PlanAxis,
  PlanBuffer,
  PlanWeight,
  Step,
} from "../../../spec/plan/plan.ts";
import type {
  Graph,
  Lambda,
  Node,
  Phase,
  ScalarFunction,
} from "../../graph/graph.ts";
import type { RowsNode } from "../../graph/dispatched_nodes.ts";
import type { MatmulTile } from "../../tuning/tile.ts";
import type { Tuning } from "../../tuning/table.ts";
import type { Fusion } from "../fuse.ts";
import type { ParamLayout } from "../param_layout.ts";
import type { Placed } from "../../sharding/placed.ts";
import type { Bucket } from "../buckets.ts";
import type { SentRows } from "./assign.ts";
import type { GroupedRows } from "./group.ts";

/** A buffer before memory is assigned. */
export interface BufferDraft extends Omit<PlanBuffer, "allocation" | "offset"> {
  /** Of an input that is stored behind the dynamic lengths, in their memory: see `share_inputs.ts`. */
  readonly offset?: number;
}

/**
 * Where a node's value is stored: `axes` in memory order (with the expert and slot axes left out when `rows` is set: then
 * memory is rows × rest). `rows.through`: rows are found through this buffer (grouped row -> row), else row = grouped row.
 */
export interface Storage {
  readonly buffer: string;
  readonly dtype: StoredDType;
  readonly axes: readonly string[];
  /** Elements share words along the contracted axis, and have scales in another buffer. */
  readonly packed?: {
    readonly stored: PackedDType;
    readonly scales: string;
    readonly offsets?: string;
  };
  readonly rowStride?: number;
  readonly rows?: {
    readonly rows: GroupedRows;
    readonly through?: string | undefined;
  };
  /** It is stored in a buffer with others: see `bucket.ts`. */
  readonly bucket?: BucketPlace;
}

/** Where a value is stored in a bucket. Its own axes are as long there as on the rank that has most of them. */
export interface BucketPlace {
  /** Where it begins, in elements of a block. */
  readonly offset: number;
  /** All blocks are there: items of `axis` from `n * each` are stored in the block of group rank n, and blocks are `stride` elements long. */
  readonly blocks?: {
    readonly axis: string;
    readonly each: number;
    readonly stride: number;
  };
}

/** The graph, and what the passes before decided of its nodes. */
export interface LoweredModel {
  readonly graph: Graph;
  readonly scalars: ReadonlyMap<Lambda, ScalarFunction>;
  readonly fusion: Fusion;
  /** Nodes whose value is on dispatched rows -> the group of their rows. */
  readonly dispatched: ReadonlyMap<Node, RowsNode>;
  /** Nodes that one collective moves together, by each of them. */
  readonly buckets: ReadonlyMap<Node, Bucket>;
  readonly layouts: ReadonlyMap<Node, ParamLayout>;
  /** Dispatched values that are sent back: stored where their rows were received. */
  readonly returning: ReadonlySet<Node>;
}

/** How kernels are chosen. */
export interface LoweringOptions {
  readonly numerics: NumericsClass;
  readonly tile: MatmulTile;
  readonly tuning: Tuning;
}

/** What is built: the parts of a plan so far. */
export interface PlanDraft {
  readonly buffers: Map<string, BufferDraft>;
  readonly kernels: Map<string, Kernel>;
  readonly steps: Step[];
  readonly weights: PlanWeight[];
  /** Outputs that the checks add. */
  readonly checks: { readonly name: string; readonly buffer: string }[];
  /** Axes that parameters stored in blocks have besides those of the model. */
  readonly blockAxes: Map<string, PlanAxis>;
  /** Kernel, or its text -> its name, so that equal kernels are one. */
  readonly kernelNames: Map<Kernel | string, string>;
  /** Buffer names given away, and those that the model's tensors will have. */
  readonly names: Set<string>;
  /** Where the length and start of each sharded axis are in the buffer of parts, once there is one. */
  parts?: ReadonlyMap<string, number>;
  readonly numbers: Map<string, number>;
}

/** Where values are stored, by the node that made them. */
export interface Values {
  readonly storages: Map<Node, Storage>;
  /** The rows that routings send, by assign node, and those that they receive, by group node. */
  readonly sent: Map<Node, SentRows>;
  readonly groups: Map<Node, GroupedRows>;
  /** Where the rows of each expert start, by group node; made where gradients need it. */
  readonly rowStarts: Map<Node, string>;
  /** What route and topK nodes leave. */
  readonly results: Map<Node, RouteResults>;
  /** Rotary tables by `ropeKey`. */
  readonly ropeTables: Map<string, string>;
  /** Where values that a bucket takes are written at once. */
  readonly bucketPlaces: Map<Node, Storage>;
}

/** State of one lowering. */
export interface Lowering {
  readonly model: LoweredModel;
  /** Where ranks are, and what they have of each axis. */
  readonly placed: Placed;
  readonly options: LoweringOptions;
  readonly draft: PlanDraft;
  readonly values: Values;
  /** What the nodes that are being lowered are for. */
  readonly progress: { phase?: Phase; block?: string | undefined };
}

/** Buffers that a route or topK node leaves. */
export interface RouteResults {
  readonly index: string;
  readonly weight: string;
  readonly slot?: string;
}

/** What lowering is given. */
export type LoweringInput = Pick<Lowering, "model" | "placed" | "options">;
