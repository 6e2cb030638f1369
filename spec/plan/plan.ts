/**
 * The plan: everything the runtime does, on every rank, as one document. It is data: it can be saved, read,
 * diffed, verified and run elsewhere. `text.ts` prints it, `json.ts` reads and writes it, `verify.ts` says what is legal.
 */

import type { Table } from "../table.ts";
import type { StoredDType } from "../dtype.ts";
import type { Span } from "../errors.ts";
import type { Kernel } from "../kernel/tree.ts";
import type { Mesh } from "../mesh.ts";
import type { Numerics } from "../numerics.ts";
import type { ConstData, PerRank } from "../per_rank.ts";
import type { Size } from "../size.ts";
import type {
  Count,
  Name,
  Natural,
  NonEmpty,
  RankCount,
  Several,
  Short,
  ShortNonEmpty,
  ShortRecord,
} from "../values.ts";

export { maxOverRanks, onRank, perRank } from "../per_rank.ts";
export type { ConstData, PerRank } from "../per_rank.ts";

/** An axis of the model as the plan sees it. */
export interface PlanAxis {
  /** Length, or the bound of a dynamic length, over all ranks. */
  readonly size: Natural;
  /** Its length is known only at run time, or differs by rank at run time. */
  readonly dynamic?: true;
  /** Dynamic axes whose length over all ranks is always `size`: only their parts on the ranks differ. */
  readonly exact?: true;
  /** The mesh axes it is placed over; absent: every rank has all of it. */
  readonly over?: Short<Name>;
  /** The axis of the model that ranks hold parts of; absent: it is that axis. */
  readonly of?: Name;
  /** Experts are numbered on it. */
  readonly experts?: true;
  /** Placed fixed axes: the global ids at each group rank over the mesh axes. */
  readonly table?: Table;
  /**
   * Placed dynamic axes: how items are assigned to ranks. `blocks`: contiguous ones, of all items or of those that ranks
   * have of axis `within`. `sequence` names the input that keeps a sequence on one rank.
   * `items`: each goes where that item of axis `of` is whose number the input gives; a rank is given its number there.
   * `group`: those of axis `of` that ranks with the same coordinates along these mesh axes have, one rank's after another's.
   */
  readonly assignment?:
    | { readonly by: "blocks"; readonly within?: Name }
    | { readonly by: "sequence"; readonly input: Name }
    | { readonly by: "items"; readonly input: Name; readonly of: Name }
    | { readonly by: "group"; readonly of: Name };
}

/** One axis of a buffer, in memory order. `size` is the bound where the axis is dynamic. Axis "expert slot" means rows of a dispatch. */
export interface BufferAxis {
  readonly axis: Name;
  readonly size: PerRank;
  readonly dynamic?: true;
}

/**
 * input: written by the caller before a program. weight: filled from files at load. state: zero at load, kept between
 * programs. const: `data`, written at load. rope: a table made at load, see `rope`. counts: u32, this rank's length of
 * each axis in `plan.counts`, written before a program. assignment: u32, how a placed dynamic axis is on the ranks in this
 * run, see `assignment`, written before a program. output and scratch: written by steps.
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

/** before reads: they see the new contents. after reads: they see what was there before the program. */
export type WriteOrder = "before reads" | "after reads";

/** A buffer of every rank. Row-major over `axes`; `rowStride` is the padded length of the last axis, in elements. */
export interface PlanBuffer {
  readonly name: Name;
  readonly kind: BufferKind;
  readonly dtype: StoredDType;
  readonly axes: Short<BufferAxis>;
  readonly rowStride?: Natural;
  /** What it holds is, on each rank, a part of a sum: added up over the ranks along these mesh axes they are the value. */
  readonly unreduced?: Short<Name>;
  /**
   * Kinds scratch and output: the steps of a program that write it on a rank, each a part of it. A step that reads it comes
   * after all of them. Default: 1.
   */
  readonly writers?: Count;
  /**
   * Kinds state and weight: the programs that write it, in one step on every rank, and on which side of the steps that read
   * it that step is. A program that is not named here does not write it.
   */
  readonly written?: { readonly [program: string]: WriteOrder };
  /** Bytes on each rank: the product of sizes (with padding) times the element, rounded up to 4, at least 4. */
  readonly bytes: PerRank;
  /** Index into `plan.allocations`. */
  readonly allocation: Natural;
  /**
   * Where it begins in its allocation, in bytes, on every rank: a multiple of `STORAGE_ALIGNMENT`. Buffers that overlap
   * there are never live at once.
   */
  readonly offset: Natural;
  /** What it says of a routing: how many rows are of each expert, tiles of them, or something of each row. */
  readonly routing?: "counts" | "tiles" | "rows";
  /** kind const: the u32 values. */
  readonly data?: ConstData;
  /** kind rope: element [position][i] = cos, [position][half+i] = sin of position * inverseFrequencies[i], scaled. */
  readonly rope?: {
    readonly inverseFrequencies: readonly number[];
    readonly scale: number;
  };
  /**
   * kind assignment: what is said of the axis. items: for each of this rank's items, in local order, its index among those that
   * the rank has of axis `of`. rows: for each global index, its row where the items of all group ranks are stored one after
   * another. counts: how many items each rank of the group over the mesh axes `over` has.
   */
  readonly assignment?: {
    readonly axis: Name;
    readonly holds: "items" | "rows" | "counts";
    readonly of?: Name;
    readonly over?: readonly Name[];
  };
}

/** Memory that every rank allocates as one when a plan is loaded, such as a GPUBuffer. Buffers are ranges of it. */
export interface Allocation {
  readonly bytes: PerRank;
}

/** A kernel of the plan. Devices print it in their own language: WGSL (`printWgsl`), WebAssembly, C. */
export interface PlanKernel {
  readonly tree: Kernel;
}

/**
 * How a weight buffer is filled. `axes` are those of one source tensor as it is stored in the file, under the names that the
 * buffer has them by: along an axis that is sharded, each rank takes its own indices, which the axis says.
 */
export interface PlanWeight {
  readonly buffer: Name;
  /** The safetensors key; `{axis}` stands for an index of the stacked axis. */
  readonly source: Name;
  readonly stored: StoredDType;
  /** Axes and shape of one source tensor, as it is stored in the file. */
  readonly axes: Short<Name>;
  readonly shape: readonly Natural[];
  /** The axis of the buffer for each index of which there is a source tensor of its own. */
  readonly stack?: Name;
}

/** Which dispatch or combine of the model a step is a part of. */
export interface StepPart {
  readonly op: "dispatch" | "combine";
  /** The routing's number in the plan; a dispatch and its combine share it. */
  readonly routing: Natural;
  readonly part:
    | "count"
    | "permute"
    | "exchange counts"
    | "exchange places"
    | "list rows"
    | "exchange rows"
    | "sum"
    | "exchange"
    | "wait"
    | "regroup"
    | "combine";
  /** Part count: rows stay on the rank, and it lists them by expert, too. */
  readonly lists?: true;
}

/** What all steps have. */
export interface StepBase {
  readonly ranks: "all" | NonEmpty<Natural>;
  /** What it computes, in the model's words: `add(x, combine(…))`, and where. */
  readonly label?: string;
  readonly span?: Span;
  /** The block of the model that it is of, such as `layers.3.moe`; absent: of none. */
  readonly block?: Name;
  readonly part?: StepPart;
  /** Of training: whether it is for gradients or for next values; absent: for the forward pass. */
  readonly phase?: "backward" | "update";
}

/** Start a kernel. `bindings` maps the kernel's binding names to buffers. Zero workgroups: nothing is started. */
export interface LaunchStep extends StepBase {
  readonly op: "launch";
  readonly kernel: Name;
  readonly bindings: ShortRecord<Name>;
  readonly workgroups: readonly [Size, Size, Size];
}

/** Copy `bytes` bytes from the start of one buffer to the start of another on the same rank. */
export interface CopyStep extends StepBase {
  readonly op: "copy";
  readonly from: Name;
  readonly to: Name;
  readonly bytes: PerRank;
}

/**
 * Concatenate `from` (`bytes` bytes) of every rank of the group, in the order of group ranks, into `to`. With `rows`, `bytes` are those of
 * a row, and every rank gives as many rows as it has items of the placed dynamic axis; `rows.counts` is an `assignment` buffer
 * that holds these numbers by group rank. With `blocks`, `from` has a block of `bytes` bytes for each rank of the group, and a rank
 * gets of everyone only the block that is for itself; `blocks.groupRank` holds its group rank.
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
 * Exchange rows. `counts` is u32 [group rank][expert]; experts `splits[p]` to `splits[p + 1]` belong to group rank p. Where tokens
 * are deduplicated, they go by counts for each rank and chunk, behind those of experts.
 * n(s, p) = sum over p's experts of counts[s][expert]. forward: `from` holds, on rank s, blocks of n(s, 0), n(s, 1), …
 * rows, and `to`, on rank p, receives blocks of n(0, p), n(1, p), … rows. back: the same with `from` and `to` in
 * each other's places, so rows return to where they came from. `receivedCounts` (u32 [group rank]) receives the number of
 * rows taken from each rank; `groupRank` holds this rank's index in the group.
 *
 * With `experts`, one pair for each group rank, only the rows of p's experts from the first below the second are sent: a
 * *chunk*. The buffer that holds rows by destination (forward: `from`, back: `to`) has them where an exchange of all rows has them; in
 * the other one the blocks of the chunk are stored packed.
 *
 * With `handle`, the step only starts the exchange; it is over after the `wait` step of that name.
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
  /** Counts of each rank. Default: up to the last split. */
  readonly countsPerRank?: Count;
  readonly experts?: NonEmpty<readonly [first: Natural, end: Natural]>;
  readonly groupRank: Name;
  readonly receivedCounts: Name;
  /** The most rows from one rank to another. */
  readonly pairRows: Size;
  readonly handle?: Name;
}

/** Wait for the exchange that an earlier step started under this name. Until then nothing touches what it moves. */
export interface WaitStep extends StepBase {
  readonly op: "wait";
  readonly handle: Name;
}

/** One step of a program. The union is closed. */
export type Step =
  | LaunchStep
  | CopyStep
  | AllGatherStep
  | AllToAllStep
  | WaitStep;

/** An input or output as the caller sees it: a global row-major tensor. */
export interface Port {
  readonly buffer: Name;
  readonly dtype: "f32" | "i32" | "u32";
  readonly axes: Short<Name>;
  /** Integer inputs that index something: every value is at least 0 and less than this. */
  readonly below?: Count;
  /** Integer inputs whose values number items of this axis: each is less than its length in the run. Ranks get their own numbers. */
  readonly indexes?: Name;
}

/** A list of steps with its inputs and outputs; programs share buffers. */
export interface Program {
  readonly name: Name;
  readonly inputs: { readonly [name: string]: Port };
  readonly outputs: { readonly [name: string]: Port };
  readonly steps: readonly Step[];
}

/** The whole document. */
export interface Plan {
  readonly version: 2;
  /** In which order sums are taken; see `numerics.md`. */
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
  readonly programs: NonEmpty<Program>;
  /** Sum of the allocations. */
  readonly peakBytes: PerRank;
  /** Bytes of staging that a communicator adds on each rank, where it is used. */
  readonly staging: { readonly local: PerRank; readonly host: PerRank };
  /** The document of the model that it was compiled from, and how: of a saved plan, so that it can be compiled again. */
  readonly compiledFrom?: { readonly [field: string]: unknown };
}
