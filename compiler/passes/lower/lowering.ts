/** What a lowering knows and collects: where each node's value lies, and the buffers, kernels and steps so far. */

import type { StoredDType } from "../../../spec/dtype.ts";
import type { Kernel } from "../../../spec/kernel/tree.ts";
import type {
  PerRank,
  PlanAxis,
  PlanBuffer,
  PlanWeight,
  Step,
} from "../../../spec/plan.ts";
import type { Size } from "../../../spec/size.ts";
import type {
  Graph,
  Lambda,
  Node,
  NodeOf,
  Phase,
  ScalarFunction,
} from "../../graph/graph.ts";
import type { MatmulTile } from "../../kernels/matmul_tile.ts";
import type { Tuning } from "../../kernels/tiles.ts";
import type { Fusion } from "../fuse.ts";
import type { ParamLayout } from "../param_layout.ts";
import type { Placed } from "../../sharding/placed.ts";
import type { Bucket } from "../buckets.ts";

/** A buffer before memory is assigned. */
export type BufferDraft = Omit<PlanBuffer, "allocation" | "offset">;

/**
 * Where a node's value lies: `axes` in memory order (with the expert and slot axes left out when `rows` is set: then
 * memory is rows × rest). `rows.through`: rows are found through this buffer (grouped row -> row), else row = grouped row.
 */
export interface Storage {
  readonly buffer: string;
  readonly dtype: StoredDType;
  readonly axes: readonly string[];
  /** MXFP4: the buffer of scales; elements lie eight to a word along the contracted axis. */
  readonly scales?: string;
  readonly rowStride?: number;
  readonly rows?: {
    readonly routing: RoutingBuffers;
    readonly through?: string;
  };
  /** It lies in a buffer with others: see `bucket.ts`. */
  readonly bucket?: BucketPlace;
}

/** Where a value lies in a bucket. Its own axes are as long there as on the rank that has most of them. */
export interface BucketPlace {
  /** Where it begins, in elements of a block. */
  readonly offset: number;
  /** It is whole: items of `axis` from `n * each` lie in the block of position n, and blocks are `stride` elements long. */
  readonly cut?: {
    readonly axis: string;
    readonly each: number;
    readonly stride: number;
  };
}

/** The buffers of one routing, or of one of its chunks, made once and shared by its dispatches and combines. */
export interface RoutingBuffers {
  readonly number: number;
  readonly node: Node;
  /** The axis of the rank's experts. */
  readonly expert: string;
  readonly topK: number;
  readonly over: readonly string[];
  readonly splits: readonly number[];
  /** The columns of the counts whose rows these are, by position; absent: all. */
  readonly columns?: readonly (readonly [first: number, end: number])[];
  /** Rows sent and received at most, and the host's bound at run time. */
  readonly sendBound: PerRank;
  readonly receiveBound: PerRank;
  readonly receiveSize: Size;
  readonly sendSize: Size;
  /** The most rows between two ranks. */
  readonly pairSize: Size;
  readonly tileSize: Size;
  readonly sendRow: string;
  readonly counts: string;
  /** Counts of every rank of the group; `counts` itself where there is one rank. */
  readonly countsAll: string;
  readonly position: string;
  readonly tiles: string;
  readonly rowOf: string;
  readonly expertOf: string;
  readonly rowCount: string;
  /** Where tokens are sent once to each position: what that needs besides. */
  readonly once?: OnceBuffers;
}

/** The buffers of a routing whose tokens are sent once to each position, whatever the number of their experts there. */
export interface OnceBuffers {
  /** Rows sent and received at most, and between two ranks. */
  readonly sendBound: PerRank;
  readonly receiveBound: PerRank;
  readonly pairSize: Size;
  /** Tokens for each position, and those of every rank of the group. */
  readonly reach: string;
  readonly reachAll: string;
  /** The row that a token is sent in, at its first choice of each position. */
  readonly tokenRow: string;
  /** For each row of a choice, its token among those for its position; as sent, and as received. */
  readonly places: string;
  readonly placesHere: string;
  /** Grouped row -> received token. */
  readonly tokenOf: string;
}

/** A dispatched value that is sent in chunks. */
export interface Travelling {
  readonly node: NodeOf<"dispatch">;
  readonly sent: string;
  readonly words: number;
  /** The exchanges that are started, by chunk. */
  readonly handles: string[];
}

/** The chunks of a routing, and the work on them that waits for a combine. */
export interface Pipeline {
  readonly chunks: readonly RoutingBuffers[];
  /** Where the values of each chunk lie. */
  readonly storages: readonly Map<Node, Storage>[];
  /** Values whose first chunk is sent. */
  readonly travelling: Travelling[];
  /** Nodes on rows, in order. */
  readonly kept: Node[];
}

/** State of one lowering. */
export interface Lowering {
  readonly graph: Graph;
  readonly placed: Placed;
  readonly fusion: Fusion;
  readonly tile: MatmulTile;
  readonly tuning: Tuning;
  /** Token ids travel along with every routing, and are compared on return. */
  readonly check: boolean;
  /** Outputs that the checks add. */
  readonly checks: { readonly name: string; readonly buffer: string }[];
  readonly scalars: ReadonlyMap<Lambda, ScalarFunction>;
  readonly buffers: Map<string, BufferDraft>;
  readonly kernels: Map<string, Kernel>;
  readonly steps: Step[];
  readonly storages: Map<Node, Storage>;
  /** Routings by route node; where one is cut into chunks, its first chunk. */
  readonly routings: Map<Node, RoutingBuffers>;
  /** Whether a token is sent once to each rank, however many of its experts are there; undefined: where that saves much. */
  readonly sendOnce: boolean | undefined;
  /** Into how many chunks a dispatch is cut, if its ranks have so many experts. */
  readonly chunks: number;
  /** Routings that are cut into chunks, by route node. */
  readonly pipelines: Map<Node, Pipeline>;
  /** What the nodes that are being lowered are for. */
  readonly progress: { phase?: Phase; block?: string | undefined };
  /** `chunk 1 of 2`, where the nodes of one are lowered. */
  readonly chunk?: string;
  /** Where the rows of each expert start, by route node; made where gradients need it. */
  readonly rowStarts: Map<Node, string>;
  /** What route and topK nodes leave. */
  readonly results: Map<Node, RouteResults>;
  /** Dispatched values that travel back: stored where their rows were received. */
  readonly goesBack: ReadonlySet<Node>;
  /** Kernel text -> its name, so that equal kernels are one. */
  readonly kernelNames: Map<string, string>;
  readonly numbers: Map<string, number>;
  /** Buffer names given away, and those that the model's tensors will have. */
  readonly names: Set<string>;
  /** Axes that parameters stored in blocks have besides those of the model. */
  readonly blockAxes: Map<string, PlanAxis>;
  /** Rotary tables by `ropeKey`. */
  readonly ropeTables: Map<string, string>;
  /** Nodes whose value lives on dispatched rows -> their route node. */
  readonly dispatched: ReadonlyMap<Node, Node>;
  /** Nodes that one collective moves together, by each of them. */
  readonly buckets: ReadonlyMap<Node, Bucket>;
  /** Where values that a bucket takes are written at once. */
  readonly bucketPlaces: Map<Node, Storage>;
  /** Rows that came home, by what was sent home. */
  readonly returned: Map<Node, string>;
  readonly weights: PlanWeight[];
  readonly layouts: ReadonlyMap<Node, ParamLayout>;
}

/** Buffers that a route or topK node leaves. */
export interface RouteResults {
  readonly index: string;
  readonly weight: string;
  readonly slot?: string;
}

/** What lowering is given. */
export type LoweringInput = Pick<
  Lowering,
  | "graph"
  | "placed"
  | "fusion"
  | "scalars"
  | "dispatched"
  | "buckets"
  | "layouts"
  | "tile"
  | "tuning"
  | "check"
  | "chunks"
  | "sendOnce"
  | "goesBack"
>;
