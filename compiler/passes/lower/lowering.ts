/** State of lowering: the storage of each node's value, and the buffers, kernels and steps so far. */

import type { Size } from "../../../spec/size.ts";
import type { RankSet } from "../../../spec/mesh.ts";
import type { NumericsClass, Operands } from "../../../spec/numerics.ts";
import type { StoredDType } from "../../../spec/dtype.ts";
import type { Wire } from "../../../spec/wire.ts";
import type { PackedDType } from "../../../spec/weights/packed.ts";
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
  NodeOf,
  Phase,
  ScalarFunction,
} from "../../graph/graph.ts";
import type { RowsNode } from "../../graph/routing/dispatched_nodes.ts";
import type { MatmulTile } from "../../tuning/tile.ts";
import type { Tuning } from "../../tuning/table.ts";
import type { Fusion } from "../fuse.ts";
import type { ParamLayout } from "../param_layout.ts";
import type { Placed } from "../../sharding/placed.ts";
import type { Bucket } from "../buckets.ts";
import type { AttentionOptions } from "../../kernels/attention/block.ts";
import type { RouterOptions } from "../../kernels/routing/router.ts";
import type { WireRows } from "../../kernels/wire.ts";
import type { SentRows } from "./routing/assign.ts";
import type { GroupedRows } from "./routing/group.ts";
import type { InlineNorm } from "./matmul/inline_norms.ts";

/** A buffer before allocation. */
export interface BufferDraft extends Omit<PlanBuffer, "allocation" | "offset"> {
  /** Offset of an input that is stored after the dynamic lengths, in their memory: see `share_inputs.ts`. */
  readonly offset?: number;
}

/**
 * Storage of a node's value: `axes` in memory order, without the expert and slot axes if `rows` is set; memory is then
 * rows × rest. `rows.through`: buffer that maps a grouped row to a row. Default: row = grouped row.
 */
export interface Storage {
  readonly buffer: string;
  readonly dtype: StoredDType;
  readonly axes: readonly string[];
  /** Elements share words along an axis; scales are in another buffer. */
  readonly packed?: {
    readonly stored: PackedDType;
    readonly along: string;
    readonly scales: string;
    readonly offsets?: string;
    readonly factors?: string;
  };
  readonly rowStride?: number;
  /** Rows along the last axis are encoded for an exchange, in words. */
  readonly wire?: WireRows;
  readonly rows?: {
    readonly rows: GroupedRows;
    readonly through?: string | undefined;
  };
  /** Stored in a bucket: see `collectives/bucket.ts`. */
  readonly bucket?: BucketLayout;
}

/** Location of a value in a bucket. Its own axes have the maximum length over ranks. */
export interface BucketLayout {
  /** Offset in elements of a block. */
  readonly offset: number;
  /**
   * All blocks are present: items of `axis` from `n * each` are in the block of group rank n, and the stride of blocks
   * is `stride` elements.
   */
  readonly blocks?: {
    readonly axis: string;
    readonly each: number;
    readonly stride: number;
  };
}

/** The graph, and the decisions of earlier passes. */
export interface LoweredModel {
  readonly graph: Graph;
  readonly scalars: ReadonlyMap<Lambda, ScalarFunction>;
  readonly fusion: Fusion;
  /** Nodes on dispatched rows -> the group of their rows. */
  readonly dispatched: ReadonlyMap<Node, RowsNode>;
  /** Bucket of each node in one. */
  readonly buckets: ReadonlyMap<Node, Bucket>;
  readonly layouts: ReadonlyMap<Node, ParamLayout>;
  /** Axis order of next values of parameters: that of the parameter. */
  readonly nextAxes: ReadonlyMap<Node, readonly string[]>;
  /** Axis order of caches in memory, if it differs from that of the state. */
  readonly cacheAxes: ReadonlyMap<Node, readonly string[]>;
  /** Parameters of routers, whose operands keep 32 bits. */
  readonly routers: ReadonlySet<Node>;
  /** Dispatched values that are sent back: stored at the offsets of their received rows. */
  readonly returning: ReadonlySet<Node>;
}

/** Options of kernel selection. */
export interface LoweringOptions {
  readonly numerics: NumericsClass;
  readonly wire: Wire;
  /** Of matmuls of many rows, and of attention of many tokens. */
  readonly operands: Operands;
  readonly tile: MatmulTile;
  readonly tuning: Tuning;
  /** Maximum bytes of a binding, and number of bindings of a kernel. */
  readonly maxBinding: number;
  readonly maxBindings: number;
  /** Maximum bytes of workgroup memory, and lanes of a workgroup. */
  readonly maxShared: number;
  readonly maxLanes: number;
}

/** A launch for one token, with the bindings of the kernel that it replaces. */
export interface LaunchForOne {
  readonly kernel: Kernel;
  /** Workgroups along y. */
  readonly groups: number;
}

/** The launches that take the place of a launch for one token. Default: it remains. */
export interface LaunchesForOne {
  /** The one that is merged with others. */
  readonly merged?: LaunchForOne | undefined;
  /** The one that is not. */
  readonly alone?: LaunchForOne | undefined;
}

/** The parts of the plan so far. */
export interface PlanDraft {
  readonly buffers: Map<string, BufferDraft>;
  readonly kernels: Map<string, Kernel>;
  readonly steps: Step[];
  readonly weights: PlanWeight[];
  /** Outputs of check steps. */
  readonly checks: { readonly name: string; readonly buffer: string }[];
  /** Axes of parameters stored in blocks, besides those of the model. */
  readonly blockAxes: Map<string, PlanAxis>;
  /** Kernel or its text -> its name, so that equal kernels are shared. */
  readonly kernelNames: Map<Kernel | string, string>;
  /**
   * By the name of a kernel, the one with more lanes that takes its place in launches that are not merged, or only with
   * others that have one. Bindings and grids are equal.
   */
  readonly wider: Map<string, Kernel>;
  /** By the name of a kernel, the launches that take its place for one token. */
  readonly forOne: Map<string, LaunchesForOne>;
  /** Used buffer names, including those of the model's tensors. */
  readonly names: Set<string>;
  /** Index of the length and start of each sharded axis in the buffer of parts, if it exists. */
  parts?: ReadonlyMap<string, number>;
  readonly numbers: Map<string, number>;
}

/** Storage of values, by node. */
export interface Values {
  readonly storages: Map<Node, Storage>;
  /** The sent rows of routings by assign node and by rounds node, and the received rows by group node. */
  readonly sent: Map<Node, SentRows>;
  readonly rounds: Map<Node, SentRows>;
  readonly groups: Map<Node, GroupedRows>;
  /** The first row of each expert by group node, created for gradients. */
  readonly rowStarts: Map<Node, string>;
  /** Results of route and topK nodes. */
  readonly results: Map<Node, RouteResults>;
  /** Norms that matmuls of one row compute themselves. */
  readonly norms: Map<Node, InlineNorm>;
  /** Attention whose blocks of keys are merged by a launch of their own. */
  readonly merges: Map<Node, PendingMerge>;
  /** Rotary tables by `ropeKey`. */
  readonly ropeTables: Map<string, string>;
  /** Buffers of values that were quantized, by the layout. */
  readonly quantized: Map<Node, ReadonlyMap<string, QuantizedValue>>;
  /** Storage of values that are computed directly in a bucket. */
  readonly bucketStorage: Map<Node, Storage>;
}

/** A value as `quantize` wrote it. */
export interface QuantizedValue {
  readonly buffer: string;
  /** Its rows are those of the value in memory; else as its contraction has them. */
  readonly inMemory: boolean;
}

/** State of one lowering. */
export interface Lowering {
  readonly model: LoweredModel;
  /** Ranks, and their local axes. */
  readonly placed: Placed;
  readonly options: LoweringOptions;
  readonly draft: PlanDraft;
  readonly values: Values;
  /** Phase and block of the current nodes, and the ranks of their stage. */
  readonly progress: {
    phase?: Phase;
    block?: string | undefined;
    ranks: RankSet;
  };
}

/** Result buffers of a route or topK node. */
export interface RouteResults {
  readonly index: string;
  readonly weight: string;
  readonly slot?: string;
  /** The router, if its launch waits for the assignment of its choices. */
  readonly pending?: PendingRouter;
}

/** A merge of blocks of keys, which another launch may compute. */
export interface PendingMerge {
  readonly options: AttentionOptions;
  readonly launch: Step;
  readonly bindings: { readonly [binding: string]: string };
  readonly tokens: Size;
  /** The tokens of the launch, and their maximum. Undefined: all. */
  readonly few: Size;
  readonly upTo: number | undefined;
}

/** A router and its launch. */
export interface PendingRouter {
  readonly node: NodeOf<"route">;
  readonly options: RouterOptions;
  readonly bindings: { readonly [binding: string]: string };
  /** Number of tokens. */
  readonly count: Size;
}

/** Input of lowering. */
export type LoweringInput = Pick<Lowering, "model" | "placed" | "options">;
