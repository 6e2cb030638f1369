/** A plan loaded on devices: its interface, and its options. */

import type { Plan } from "../spec/plan/plan.ts";
import type { Communicator } from "./exchange/communicator.ts";
import type { Device } from "./device.ts";
import type { HostTensor } from "./host_tensor.ts";
import type { FedInput, Inputs } from "./inputs.ts";
import type { Tracer } from "./profiler.ts";
import type { TensorDirectory } from "./weights/safetensors.ts";
import type { Statistics } from "./statistics.ts";

/** Options of a session besides the plan. */
export interface CreateSessionOptions {
  /** The device of each rank in this process. Ranks with the same object share it. */
  readonly devices: readonly Device[];
  /** Source of the plan's weights. */
  readonly tensors?: TensorDirectory;
  /** Throws if the plan is not legal. Called first. */
  readonly verify?: (plan: Plan) => void;
  /**
   * Replaces the choice between kernels and host memory. A communicator between processes has the rank of this process.
   */
  readonly communicator?: Communicator;
  /** Records every launch and collective. Runs are slower. */
  readonly tracer?: Tracer;
  /** Whether bytes sent between ranks are counted. Runs are slower. */
  readonly statistics?: boolean;
  /** Whether files that devices map are read completely, so that later reads of weights are from memory. */
  readonly preload?: boolean;
  /**
   * Bytes of expert slots on each device, whose other experts are in host memory. Default: devices have all experts.
   */
  readonly slotBytes?: number | undefined;
  readonly onProgress?: (progress: Progress) => void;
  /**
   * A session on the same devices whose weights this one uses where both plans lay them out equally (`equalWeights`).
   * They are then not loaded.
   */
  readonly weightsOf?: Session | undefined;
}

/** Progress of loading. */
export interface Progress {
  readonly stage: "kernels" | "weights" | "files";
  /** Number of kernels, or bytes of weights, or of files that are preloaded. */
  readonly done: number;
  readonly total: number;
}

/** Outputs to read after a run. Default: all of them, completely. */
export interface RunOptions {
  readonly outputs?: readonly string[];
  /** Rows of an output to read, by global index along its first axis. */
  readonly rows?: { readonly [output: string]: readonly number[] };
  /** With several processes: whether every process receives outputs. Default: only that of rank 0. */
  readonly everywhere?: boolean;
  /** Whether the sequences are new ones: their ranks do not depend on earlier runs. Default: false. */
  readonly fresh?: boolean;
  /** An input that the device copies from an output of the run before, if the session `runsAhead`. */
  readonly fed?: FedInput;
}

/** A run of a series. */
export interface SeriesRun {
  readonly inputs: Inputs;
  /** An input that the device copies from an output of the run before. */
  readonly fed?: FedInput | undefined;
}

/** Runs that the device executes without the host between them. */
export interface RunSeries {
  /** The number of runs like the last ones that take a few milliseconds. */
  readonly length: number;
  /** Runs a program several times. The inputs of all runs have the same shapes. Returns the outputs of each run. */
  run(
    program: string,
    runs: readonly SeriesRun[],
    options?: Pick<RunOptions, "outputs">,
  ): Promise<{ [output: string]: HostTensor }[]>;
}

/** A plan loaded on devices. */
export interface Session {
  /** The number of runs that pipeline stages can execute at the same time. Without stages, or with a tracer: 1. */
  readonly concurrentRuns: number;
  /** Whether a run may start while the device executes the one before, and continue from its outputs. */
  readonly runsAhead: boolean;
  /** Series of runs, of a plan for one rank on a CPU device. */
  readonly series?: RunSeries;
  /**
   * Runs a program. All processes must pass the same inputs. Several runs may be in flight: each rank executes them in
   * the order of the calls. Inputs must not change until their run ends. If a run fails, later runs in flight fail,
   * too.
   */
  run(
    program: string,
    inputs: Inputs,
    options?: RunOptions,
  ): Promise<{ [output: string]: HostTensor }>;
  /**
   * The current parameters and states, global, in f32 and in the axes of their buffers. They must be floating-point.
   * All processes must call it; by default, only that of rank 0 receives the result.
   */
  read(
    names: readonly string[],
    options?: Pick<RunOptions, "everywhere">,
  ): Promise<{ [name: string]: HostTensor }>;
  /** The shard of a parameter or state on a rank of this process: along each axis the indices of `heldIndices`. */
  readPart(name: string, rank: number): Promise<HostTensor>;
  /** Sets the shard of an f32 parameter or state on a rank of this process. */
  writePart(name: string, rank: number, part: HostTensor): void;
  /**
   * Loads weights again from `tensors`, except weights that are shared with another session. Returns the number of
   * bytes written to ranks.
   */
  load(tensors: TensorDirectory): Promise<number>;
  /** Sets states to zero and forgets the rank of each sequence. */
  reset(): void;
  /**
   * Memory and traffic of the ranks in this process so far, predicted and actual. Traffic is counted only if requested.
   */
  statistics(): Statistics;
  /** Close the devices. */
  close(): void;
}
