/**
 * The plan: everything the runtime does, on every rank, as one document. It is data: it can be saved, read, diffed,
 * verified and run elsewhere. `text/` prints it, `document/` reads and writes it, `verify/` checks its legality.
 */

import type { Table } from "../table.ts";
import type { StoredDType } from "../dtype.ts";
import type { Span } from "../errors.ts";
import type { Kernel } from "../kernel/tree.ts";
import type { Mesh, RankSet } from "../mesh.ts";
import type { Numerics } from "../numerics.ts";
import type { ConstData, PerRank } from "../per_rank.ts";
import type { ScheduleName } from "../schedule.ts";
import type { Size } from "../size.ts";
import type {
  Count,
  Name,
  Natural,
  NonEmpty,
  NonNegative,
  RankCount,
  Several,
  Short,
  ShortNonEmpty,
  ShortRecord,
} from "../values.ts";

export { maxOverRanks, onRank, perRank } from "../per_rank.ts";
export type { ConstData, PerRank } from "../per_rank.ts";

/** An axis of the model in a plan. */
export interface PlanAxis {
  /** Length, or the bound of a dynamic length, over all ranks. */
  readonly size: Natural;
  /** Whether its length is dynamic, globally or per rank. */
  readonly dynamic?: true;
  /** Dynamic axes whose length over all ranks is always `size`: only the local parts differ. */
  readonly exact?: true;
  /** The mesh axes that it is placed over. Absent: replicated. */
  readonly over?: Short<Name>;
  /** The model axis of a local axis. Absent: the axis itself. */
  readonly of?: Name;
  /** Whether it numbers experts. */
  readonly experts?: true;
  /** Placed fixed axes: the global ids of each group rank over the mesh axes. */
  readonly table?: Table;
  /**
   * Placed dynamic axes: the assignment of items to ranks. `blocks`: contiguous ones, of all items or of those that
   * ranks have of axis `within`. `sequence` names the input that keeps a sequence on one rank. `items`: each item is on
   * the rank of the item of axis `of` that the input numbers, at most `each` for one of them; the rank receives local
   * numbers. `group`: the
   * concatenation of axis `of` over the ranks with equal coordinates along these mesh axes. `keys`: see `KeysAxis`.
   */
  readonly assignment?:
    | { readonly by: "blocks"; readonly within?: Name }
    | { readonly by: "sequence"; readonly input: Name }
    | {
      readonly by: "items";
      readonly input: Name;
      readonly of: Name;
      readonly each?: Count;
    }
    | { readonly by: "group"; readonly of: Name }
    | KeysAxis;
}

/**
 * A part of attention whose ranks share the positions of sequences. The ranks of tokens `of` gather the earlier keys
 * that these tokens see, or send running sums from rank to rank, whichever is fewer bytes in a run: keys are gathered
 * if blocks * `blockBytes` < tokens * `tokenBytes`. A block has `EXACT.block` positions of axis `context`.
 *
 * - `past`: blocks of earlier keys that ranks send, in the order of ranks, sequences and positions; none if sums are
 * sent
 * - `gathered`: tokens that attend to gathered keys: all of `of`, or none
 * - `relayed`: tokens whose sums are sent: all of `of`, or none
 */
export interface KeysAxis {
  readonly by: "keys";
  readonly part: "past" | "gathered" | "relayed";
  readonly of: Name;
  /** The inputs with the sequence and the position of each token. */
  readonly input: Name;
  readonly position: Name;
  /** The axis of sequences of the rank. */
  readonly sequence: Name;
  readonly context: Name;
  /** Visible positions, see `Seen`. Default: all. */
  readonly window?: Count;
  readonly chunk?: Count;
  /** Bytes of keys per block, and of sums per token, to each other rank. */
  readonly blockBytes: Count;
  readonly tokenBytes: Count;
}

/**
 * One axis of a buffer, in memory order. `size` is the bound if the axis is dynamic. Axes "expert slot" are rows of a
 * dispatch.
 */
export interface BufferAxis {
  readonly axis: Name;
  readonly size: PerRank;
  readonly dynamic?: true;
}

/**
 * input: written by the caller before a program. weight: loaded from files. state: zero on load, persistent between
 * programs. const: `data`, written on load. rope: a table computed on load, see `rope`. counts: u32, this rank's length
 * of each axis in `plan.counts`, written before a program. assignment: u32, the assignment of a placed dynamic axis in
 * this run, see `assignment`, written before a program. output and scratch: written by steps.
 */
export type BufferKind =
  | "input"
  | "weight"
  | "state"
  | "const"
  | "rope"
  | "counts"
  | "assignment"
  | "output"
  | "scratch";

/** before reads: readers see the new contents. after reads: readers see the contents before the program. */
export type WriteOrder = "before reads" | "after reads";

/** A buffer of every rank. Row-major over `axes`; `rowStride` is the padded length of the last axis, in elements. */
export interface PlanBuffer {
  readonly name: Name;
  readonly kind: BufferKind;
  readonly dtype: StoredDType;
  readonly axes: Short<BufferAxis>;
  readonly rowStride?: Natural;
  /** Mesh axes over which the buffers of the ranks are terms of a sum. */
  readonly unreduced?: Short<Name>;
  /**
   * Kinds scratch, output and state: number of steps of a program that write it on a rank, one part each. Steps that
   * read the new contents follow all of them. Default: 1.
   */
  readonly writers?: Count;
  /**
   * Kinds state and weight: the programs that write it, in `writers` steps on every rank, and whether before or after
   * the steps that read it. Other programs do not write it.
   */
  readonly written?: { readonly [program: string]: WriteOrder };
  /** The buffer of another rank whose value it receives. */
  readonly sentFrom?: Name;
  /**
   * Bytes on each rank: the product of sizes (with padding) times the element size, rounded up to 4, at least 4. 0 on
   * ranks without the buffer, such as those of stages that do not use it.
   */
  readonly bytes: PerRank;
  /** Index into `plan.allocations`. */
  readonly allocation: Natural;
  /**
   * Offset in its allocation in bytes, on every rank: a multiple of `STORAGE_ALIGNMENT`. Overlapping buffers are never
   * live at the same time.
   */
  readonly offset: Natural;
  /** Contents for a routing: rows per expert, tiles of them, or a value per row. */
  readonly routing?: "counts" | "tiles" | "rows";
  /** kind const: the u32 values. */
  readonly data?: ConstData;
  /** kind rope: element [position][i] = cos, [position][half+i] = sin of position * inverseFrequencies[i], scaled. */
  readonly rope?: {
    readonly inverseFrequencies: readonly number[];
    readonly scale: number;
  };
  /**
   * kind assignment: the table of the axis. items: for each of this rank's items, in local order, its index among those
   * that the rank has of axis `of`. rows: for each global index, its row in the concatenation of the items of all group
   * ranks. counts: the number of items of each rank in the group over the mesh axes `over`. For a `KeysAxis`, items are
   * the blocks of the rank in its cache, and table, i32 [sequence, block], is the index of each block in gathered
   * memory.
   */
  readonly assignment?: {
    readonly axis: Name;
    readonly holds: "items" | "rows" | "counts" | "table";
    readonly of?: Name;
    readonly over?: readonly Name[];
  };
}

/**
 * Memory that every rank allocates at once when a plan is loaded, such as a GPUBuffer. Buffers are ranges of it. 0
 * bytes: the rank has none of its buffers.
 */
export interface Allocation {
  readonly bytes: PerRank;
}

/** A kernel of the plan. Devices print it in their language: WGSL (`printWgsl`), WebAssembly, C. */
export interface PlanKernel {
  readonly tree: Kernel;
}

/**
 * Source of a weight buffer. `axes`: those of one source tensor in the file, under the names of the buffer. Along a
 * sharded axis, each rank reads the indices of its table.
 */
export interface PlanWeight {
  readonly buffer: Name;
  /** The safetensors key; `{axis}` is replaced by an index of the stacked axis. */
  readonly source: Name;
  readonly stored: StoredDType;
  /** Axes and shape of one source tensor in the file. */
  readonly axes: Short<Name>;
  readonly shape: readonly Natural[];
  /** The stacked axis: each of its indices has a separate source tensor. */
  readonly stack?: Name;
  /** Products with these elements have quantized activations. Absent: f32. */
  readonly activations?: "q8";
}

/** The dispatch or combine of the model that a step belongs to. */
export interface StepPart {
  readonly op: "dispatch" | "combine";
  /** The routing's number in the plan, shared by a dispatch and its combine. */
  readonly routing: Natural;
  readonly part:
    | "count"
    | "permute"
    | "exchange counts"
    | "rounds"
    | "exchange indices"
    | "list rows"
    | "exchange rows"
    | "sum"
    | "exchange"
    | "wait"
    | "regroup"
    | "combine";
  /** The routing of the exchange between nodes, if this one is within a node. */
  readonly within?: Natural;
  /** Part count: rows are local, and it also lists them by expert. */
  readonly lists?: true;
}

/** Common fields of steps. */
export interface StepBase {
  /** The ranks that execute it: all, or those at some coordinates of mesh axes, such as the ranks of a stage. */
  readonly ranks: RankSet;
  /** Its computation in the model's terms, `add(x, combine(…))`, and its source position. */
  readonly label?: string;
  readonly span?: Span;
  /** Block of the model, such as `layers.3.moe`. Absent: none. */
  readonly block?: Name;
  readonly part?: StepPart;
  /** In training: backward pass or update. Absent: the forward pass. */
  readonly phase?: "backward" | "update";
}

/**
 * Launches a kernel. `bindings` maps the kernel's binding names to buffers. With zero workgroups, nothing is launched.
 */
export interface LaunchStep extends StepBase {
  readonly op: "launch";
  readonly kernel: Name;
  readonly bindings: ShortRecord<Name>;
  readonly workgroups: readonly [Size, Size, Size];
}

/** Copies `bytes` bytes from the start of one buffer to the start of another on the same rank. */
export interface CopyStep extends StepBase {
  readonly op: "copy";
  readonly from: Name;
  readonly to: Name;
  readonly bytes: PerRank;
}

/**
 * Concatenates `from` (`bytes` bytes) of every rank of the group, in group rank order, into `to`. With `rows`, `bytes`
 * is per row, and every rank sends one row per item of the placed dynamic axis; `rows.counts` is an `assignment` buffer
 * with these numbers by group rank. With `blocks`, `from` has a block of `bytes` bytes for each rank of the group, and
 * a rank receives from each rank only the block for itself; `blocks.groupRank` contains its group rank.
 */
export interface AllGatherStep extends StepBase {
  readonly op: "allGather";
  readonly over: ShortNonEmpty<Name>;
  readonly from: Name;
  readonly to: Name;
  readonly bytes: Natural;
  readonly rows?: { readonly axis: Name; readonly counts: Name };
  readonly blocks?: { readonly groupRank: Name };
}

/**
 * Sends `from` (`bytes` bytes) of each rank at coordinate `stages[0]` of the mesh axis `over` to `to` of the rank at
 * `stages[1]` with the same other coordinates. With `rows`, as in an allGather, `bytes` is per row. `to` has the value
 * of `from` (`sentFrom`).
 */
export interface SendStep extends StepBase {
  readonly op: "send";
  readonly over: ShortNonEmpty<Name>;
  readonly stages: readonly [source: Natural, destination: Natural];
  readonly from: Name;
  readonly to: Name;
  readonly bytes: Natural;
  readonly rows?: { readonly axis: Name; readonly counts: Name };
}

/**
 * Exchanges rows. `counts` is u32 [group rank][expert]; experts `splits[p]` to `splits[p + 1]` belong to group rank p.
 * Deduplicated tokens are sent by counts per rank and chunk, stored after those of experts. n(s, p) = sum over p's
 * experts of counts[s][expert]. forward: `from` contains, on rank s, blocks of n(s, 0), n(s, 1), … rows, and `to`, on
 * rank p, receives blocks of n(0, p), n(1, p), … rows. back: the same with `from` and `to` exchanged, so rows return
 * to their sender. `receivedCounts` (u32 [group rank]) receives the number of rows from each rank; `groupRank` contains
 * this rank's index in the group.
 *
 * With `experts`, one pair per group rank, only the rows of p's experts from the first below the second are sent: a
 * *chunk*. In the buffer by destination (forward: `from`, back: `to`), they have their offsets in the complete
 * exchange; in the other one the blocks of the chunk are packed.
 *
 * With `inRounds`, the counts are those of a round (`RoundsStep`), which state the offsets of its rows in the buffer by
 * destination.
 *
 * With `handle`, the step only starts the exchange, which ends at the `wait` step with that name.
 */
export interface AllToAllStep extends StepBase {
  readonly op: "allToAll";
  readonly over: ShortNonEmpty<Name>;
  readonly direction: "forward" | "back";
  readonly from: Name;
  readonly to: Name;
  readonly rowBytes: Count;
  readonly counts: Name;
  readonly splits: Several<Natural>;
  /** Counts per rank. Default: up to the last split. */
  readonly countsPerRank?: Count;
  readonly experts?: NonEmpty<readonly [first: Natural, end: Natural]>;
  readonly inRounds?: true;
  readonly groupRank: Name;
  readonly receivedCounts: Name;
  /** Maximum number of rows from one rank to another. */
  readonly pairRows: Size;
  readonly handle?: Name;
}

/** Waits for the exchange that an earlier step started under this name. No step between may access its buffers. */
export interface WaitStep extends StepBase {
  readonly op: "wait";
  readonly handle: Name;
}

/**
 * Divides the exchanges of a routing into rounds, so that a rank receives at most `rows` rows at a time. The following
 * steps, up to the last exchange by `to`, are repeated for each round. The rows of a rank are ordered by expert, source
 * rank and token; round r has the rows from r * `rows` below (r + 1) * `rows` of each rank. The number of rounds is at
 * least 1, and follows from the rank with the most rows. Every rank of the group derives it from `counts`, u32
 * [group rank][expert], whose experts are split as in `AllToAllStep`. `to` receives the counts of a round: u32
 * [group rank][expert, then group rank], the rows of each expert, then the offset of the first row sent to each rank.
 * `maxRows` is the maximum number of rows that a rank receives in all rounds.
 */
export interface RoundsStep extends StepBase {
  readonly op: "rounds";
  readonly over: ShortNonEmpty<Name>;
  readonly counts: Name;
  readonly to: Name;
  readonly splits: Several<Natural>;
  readonly rows: Count;
  readonly maxRows: Count;
}

/** One step of a program. The union is closed. */
export type Step =
  | LaunchStep
  | CopyStep
  | AllGatherStep
  | AllToAllStep
  | SendStep
  | WaitStep
  | RoundsStep;

/** A step that moves bytes between ranks. */
export type CollectiveStep = AllGatherStep | AllToAllStep | SendStep;

/** An input or output for the caller: a global row-major tensor. */
export interface Port {
  readonly buffer: Name;
  readonly dtype: "f32" | "i32" | "u32";
  readonly axes: Short<Name>;
  /** Integer inputs used as an index: every value is at least 0 and less than this. */
  readonly below?: Count;
  /**
   * Integer inputs whose values number items of this axis: each is less than its length in the run. Ranks receive local
   * numbers.
   */
  readonly indexes?: Name;
}

/** A list of steps with its inputs and outputs. Programs share buffers. */
export interface Program {
  readonly name: Name;
  readonly inputs: { readonly [name: string]: Port };
  readonly outputs: { readonly [name: string]: Port };
  readonly steps: readonly Step[];
}

/** The document. */
export interface Plan {
  readonly version: 2;
  /** The order of sums; see `numerics.md`. */
  readonly numerics: Numerics;
  readonly requiredLimits: { readonly [limit: string]: Natural };
  readonly requiredFeatures: readonly Name[];
  readonly mesh: Mesh;
  readonly ranks: RankCount;
  readonly axes: { readonly [name: string]: PlanAxis };
  /** Dynamic axes, in the order of the counts buffer. */
  readonly counts: Short<Name>;
  readonly allocations: readonly Allocation[];
  readonly buffers: { readonly [name: string]: PlanBuffer };
  readonly kernels: { readonly [name: string]: PlanKernel };
  readonly weights: readonly PlanWeight[];
  /**
   * Training on pipeline stages: the schedule of the micro-batches in the first program, and its estimated bubble: the
   * time that stages wait relative to the time that they work.
   */
  readonly pipeline?: {
    readonly schedule: ScheduleName;
    readonly microBatches: Count;
    readonly bubble: NonNegative;
  };
  readonly programs: NonEmpty<Program>;
  /** Sum of the allocations. */
  readonly peakBytes: PerRank;
  /** Staging bytes of each communicator per rank. */
  readonly staging: { readonly local: PerRank; readonly host: PerRank };
  /** The document of the model and the compiler options, in a saved plan, so that it can be compiled again. */
  readonly compiledFrom?: { readonly [field: string]: unknown };
}
