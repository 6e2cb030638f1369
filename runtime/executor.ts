/** Executes a plan: outer loop over steps, inner loop over ranks. The plan is its only source of work. */

import { DataError, invariant } from "../spec/errors.ts";
import { exchangesAtOnce } from "../spec/plan/bytes.ts";
import { stageAxis } from "../spec/mesh.ts";
import type { Plan, Port, Program } from "../spec/plan/plan.ts";
import { checkDevices, checkLimits, inStep } from "./check_devices.ts";
import { bindProgram, executePart } from "./bound_program.ts";
import {
  type Communicator,
  createCommunicator,
  type RemoteRanks,
  StagingAccount,
} from "./communicator.ts";
import {
  type AssignmentBuffer,
  assignmentBuffers,
  writeAssignments,
} from "./assignment.ts";
import { DeadlineError, type Device } from "./device.ts";
import { KnownCounts } from "./exchange.ts";
import { bytesOf, type HostTensor } from "./host_tensor.ts";
import {
  checkInputs,
  countsOf,
  type FedInput,
  feedInput,
  type Inputs,
  writeInput,
} from "./inputs.ts";
import {
  persistentAxes,
  persistentPort,
  readPersistentPart,
  writePersistentPart,
} from "./persistent.ts";
import { kernelsByKey } from "./kernel_key.ts";
import {
  type Lane,
  type LaneProgram,
  laneProgram,
  LaneRun,
  lanesOf,
} from "./lanes.ts";
import type { RankMemory } from "./memory.ts";
import { type FinishedRun, readOutput, readRows } from "./outputs.ts";
import type { Tracer } from "./profiler.ts";
import type { TensorDirectory } from "./safetensors.ts";
import { reuseCounts, type RunCounts } from "./run_counts.ts";
import { assignAxes, itemRanks, lastingAxes, type RunAxes } from "./shard.ts";
import {
  rankStatistics,
  type Statistics,
  TrafficAccount,
} from "./statistics.ts";
import { writeTables } from "./tables.ts";
import { allocateRanks, type Loaded } from "./rank_memories.ts";
import { loadWeights, preloadFiles, withGivenWeights } from "./weights.ts";

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
  /** Bytes of expert slots on each device, whose other experts are in host memory. Default: devices have all experts. */
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

/** A plan loaded on devices. */
export interface Session {
  /** The number of runs that pipeline stages can execute at the same time. Without stages, or with a tracer: 1. */
  readonly concurrentRuns: number;
  /** Whether a run may start while the device executes the one before, and continue from its outputs. */
  readonly runsAhead: boolean;
  /**
   * Runs a program. All processes must pass the same inputs. Several runs may be in flight: each rank executes them in
   * the order of the calls. Inputs must not change until their run ends. If a run fails, later runs in flight fail, too.
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
   * Loads the weights of given tensors again, except those that are shared with another session. Returns the bytes that
   * were written to ranks.
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

/** Loads a plan: prepares kernels, allocates memory, streams weights. */
export async function createSession(
  plan: Plan,
  options: CreateSessionOptions,
): Promise<Session> {
  const { devices, tensors = new Map(), verify, onProgress } = options;
  verify?.(plan);
  const remote = options.communicator?.remote;
  checkDevices(devices, remote ? 1 : plan.ranks);
  let done = 0;
  const unique = [...new Set(devices)];
  checkLimits(plan, unique);
  const communicator = options.communicator ?? createCommunicator();
  const kernels = {
    ...kernelsByKey(plan),
    ...communicator.kernels?.(plan, devices),
  };
  const total = unique.length * Object.keys(kernels).length;
  for (const device of unique) {
    await device.prepare(
      kernels,
      (n) => onProgress?.({ stage: "kernels", done: done + n, total }),
    );
    done += total / unique.length;
  }
  const source = options.weightsOf && LOADED.get(options.weightsOf);
  const { shared, ranks } = allocateRanks(plan, {
    devices,
    source,
    slotBytes: options.slotBytes,
    rankOf: (i) => remote ? remote.rank : i,
  });
  for (const memory of ranks) writeTables(plan, memory);
  const weights = plan.weights.filter(({ buffer }) => !shared.has(buffer));
  const loading = { ...plan, weights };
  const load = async (
    from: Plan,
    tensors: TensorDirectory,
    onProgress?: (done: number, total: number) => void,
  ) => {
    const written = await loadWeights(from, ranks, tensors, { onProgress });
    for (const device of unique) await device.idle();
    return written;
  };
  await load(
    loading,
    tensors,
    (done, total) => onProgress?.({ stage: "weights", done, total }),
  );
  if (options.preload && unique.some(({ map }) => map)) {
    const sources = [...tensors.values()].map(({ source }) => source);
    await preloadFiles(
      [...new Set(sources)],
      (done, total) => onProgress?.({ stage: "files", done, total }),
    );
  }
  const loaded = {
    ...options,
    communicator,
    load: (tensors: TensorDirectory) =>
      load(withGivenWeights(loading, tensors), tensors),
  };
  const session = new LoadedSession(plan, ranks, loaded);
  LOADED.set(session, { plan, ranks });
  return session;
}

/** Plans and memory of sessions. */
const LOADED = new WeakMap<Session, Loaded>();

class LoadedSession implements Session {
  readonly load: Session["load"];
  readonly concurrentRuns: number;
  readonly runsAhead: boolean;
  readonly #plan: Plan;
  readonly #ranks: readonly RankMemory[];
  readonly #lanes: readonly Lane[];
  readonly #programs: ReadonlyMap<string, LaneProgram>;
  readonly #staging: StagingAccount;
  readonly #traffic: TrafficAccount | undefined;
  readonly #tracer: Tracer | undefined;
  readonly #remote: RemoteRanks | undefined;
  readonly #countsBuffers: readonly string[];
  readonly #assignmentBuffers: readonly AssignmentBuffer[];
  readonly #axes = lastingAxes();
  /** Lengths of axes in the last run, and the local ones of ranks. */
  #lengths: ReadonlyMap<string, number> | undefined;
  #counts: RunCounts = [];
  /** Whether ranks may have other items of an axis in each run. */
  readonly #isPlaced: boolean;
  /** Number of runs in flight. */
  #inFlight = 0;

  constructor(
    plan: Plan,
    ranks: readonly RankMemory[],
    options: CreateSessionOptions & {
      readonly communicator: Communicator;
      readonly load: (tensors: TensorDirectory) => Promise<number>;
    },
  ) {
    const { communicator, tracer } = options;
    this.load = options.load;
    this.#plan = plan;
    this.#ranks = ranks;
    this.#staging = new StagingAccount();
    this.#tracer = tracer;
    this.#remote = communicator.remote;
    this.#isPlaced = Object.values(plan.axes).some(({ over = [] }) =>
      over.length > 0
    );
    this.#traffic = options.statistics || tracer
      ? new TrafficAccount(plan, ranks)
      : undefined;
    this.#countsBuffers = Object.keys(plan.buffers)
      .filter((name) => plan.buffers[name]!.kind === "counts");
    this.#assignmentBuffers = assignmentBuffers(plan);
    const context = {
      plan,
      ranks,
      staging: this.#staging,
      known: new KnownCounts(),
      sent: tracer && this.#traffic
        ? tracer.noting(this.#traffic)
        : this.#traffic,
      communicator,
      ...tracer ? { around: tracer.around(ranks) } : {},
    };
    this.#lanes = lanesOf(plan, ranks);
    this.#programs = new Map(
      plan.programs.map((program) => {
        const bound = bindProgram(program, context);
        const on = { bound, lanes: this.#lanes };
        return [program.name, laneProgram(plan, program, on)];
      }),
    );
    this.concurrentRuns = tracer
      ? 1
      : this.#remote
      ? stageAxis(plan.mesh)?.size ?? 1
      : this.#lanes.length;
    // The device executes what it is given in order, reads included.
    this.runsAhead = !tracer && !this.#remote && plan.ranks === 1 &&
      ranks[0]!.device.kind === "gpu" && !ranks[0]!.slots;
    this.#staging.allocate(exchangesAtOnce(plan));
  }

  async run(
    name: string,
    inputs: Inputs,
    options: RunOptions = {},
  ): Promise<{ [output: string]: HostTensor }> {
    const bound = this.#programs.get(name);
    if (!bound) {
      throw new DataError(
        `Cannot run program '${name}': the plan has only ${
          [...this.#programs.keys()].map((n) => `'${n}'`).join(", ")
        }`,
      );
    }
    const { program, inFlight } = bound;
    const wanted = options.outputs ?? Object.keys(program.outputs);
    for (const output of wanted) {
      if (Object.hasOwn(program.outputs, output)) continue;
      throw new DataError(
        `Cannot read output '${output}': program '${name}' has only ${
          Object.keys(program.outputs).map((n) => `'${n}'`).join(", ")
        }`,
      );
    }
    const lengths = checkInputs(this.#plan, program, inputs);
    if (this.#tracer && this.#inFlight > 0) {
      throw new DataError(
        `Cannot trace program '${name}': another run is in progress. Await it first`,
      );
    }
    if (options.fresh) this.#axes.sequenceRanks.clear();
    const axes = assignAxes(this.#plan, lengths, inputs, this.#axes);
    const counts = this.#countsOf(lengths, axes);
    const reported = counts === this.#counts;
    this.#counts = counts;
    this.#inFlight++;
    const traffic = this.#traffic;
    const byLane = bound.partsFor(wanted);
    const run = new LaneRun((part) =>
      executePart(
        part,
        counts,
        traffic && ((collective) => traffic.predict(collective, counts)),
      )
    );
    let left = this.#lanes.length;
    this.#tracer?.begin(name, itemRanks(this.#plan, program, axes));
    try {
      const read = await run.on(this.#lanes, async (lane, index) => {
        writeAssignments(this.#assignmentBuffers, lane.ranks, axes);
        for (const memory of lane.ranks) {
          if (!reported) this.#writeCounts(memory, counts[memory.rank]!);
          for (const [input, port] of Object.entries(program.inputs)) {
            if (!memory.has(port.buffer)) continue;
            writeInput({ name: input, port }, inputs[input]!, memory, axes);
          }
          if (options.fed) feedInput(program, memory, options.fed);
        }
        for (const part of byLane[index]!) {
          const wait = run.execute(part);
          if (wait) await wait;
        }
        if (--left === 0) this.#tracer?.end();
        const outputs = wanted.filter((output) =>
          this.#laneOf(program.outputs[output]!) === lane
        );
        return await this.#read(program, axes, { ...options, outputs });
      });
      const outputs = new Map(
        await Promise.all(
          read.flat().map(async ([output, tensor]) =>
            [output, await tensor] as const
          ),
        ),
      );
      return Object.fromEntries(wanted.flatMap((output) => {
        const tensor = outputs.get(output);
        return tensor ? [[output, tensor]] : [];
      }));
    } catch (error) {
      // Work of this process must end before the next run; other processes may never answer.
      if (!this.#remote) await inFlight.settle();
      this.#counts = [];
      this.#lengths = undefined;
      throw error instanceof DeadlineError ? inStep(error, program) : error;
    } finally {
      if (--this.#inFlight === 0) {
        for (const lane of this.#lanes) lane.last = undefined;
      }
    }
  }

  /** The lane that reads an output: the first with its buffer. */
  #laneOf({ buffer }: Port): Lane {
    return this.#lanes.find(({ ranks }) =>
      ranks.some((memory) => memory.has(buffer))
    ) ?? this.#lanes[0]!;
  }

  /** The lengths on ranks: the same object as in the previous run if they are equal. */
  #countsOf(lengths: ReadonlyMap<string, number>, axes: RunAxes): RunCounts {
    const before = this.#lengths;
    const same = !this.#isPlaced && before?.size === lengths.size &&
      [...lengths].every(([axis, length]) => before.get(axis) === length);
    if (same) return this.#counts;
    const counts = countsOf(this.#plan, axes);
    this.#lengths = lengths;
    return reuseCounts(this.#counts, counts);
  }

  async read(
    names: readonly string[],
    { everywhere = false }: Pick<RunOptions, "everywhere"> = {},
  ): Promise<{ [name: string]: HostTensor }> {
    const [plan, ranks, remote] = [this.#plan, this.#ranks, this.#remote];
    const axes = persistentAxes(plan);
    const from = { plan, ranks, remote, axes, everywhere, reads: [] };
    const read: { [name: string]: HostTensor } = {};
    for (const name of names) {
      const tensor = await readOutput(persistentPort(plan, name), from);
      if (tensor) read[name] = tensor;
    }
    return read;
  }

  async readPart(name: string, rank: number): Promise<HostTensor> {
    return await readPersistentPart(this.#plan, name, this.#memoryOf(rank));
  }

  writePart(name: string, rank: number, part: HostTensor): void {
    writePersistentPart(this.#plan, name, this.#memoryOf(rank), part);
  }

  reset(): void {
    this.#axes.sequenceRanks.clear();
    for (const memory of this.#ranks) {
      for (const [name, { kind }] of Object.entries(this.#plan.buffers)) {
        if (kind === "state" && memory.has(name)) memory.clear(name);
      }
    }
  }

  statistics(): Statistics {
    const [first] = this.#ranks;
    const streaming = first?.slots?.statistics() ?? first?.device.streaming?.();
    return {
      ranks: this.#ranks.map((memory) =>
        rankStatistics(
          this.#plan,
          memory,
          this.#staging.bytes(memory.rank),
          this.#traffic,
        )
      ),
      ...streaming?.misses ? { streaming } : {},
    };
  }

  close(): void {
    for (const device of new Set(this.#ranks.map((m) => m.device))) {
      device.destroy();
    }
  }

  /** Reads outputs from the ranks of this process. Those of other processes may arrive later. */
  async #read(
    program: Program,
    axes: RunAxes,
    options: RunOptions & { readonly outputs: readonly string[] },
  ): Promise<[output: string, tensor: Promise<HostTensor | undefined>][]> {
    const { outputs, rows: wanted, everywhere = false } = options;
    const [plan, ranks, remote] = [this.#plan, this.#ranks, this.#remote];
    const reads: Promise<unknown>[] = [];
    const from: FinishedRun = { plan, ranks, remote, axes, everywhere, reads };
    const read = outputs.map(
      (output): [string, Promise<HostTensor | undefined>] => {
        const port = program.outputs[output]!;
        const rows = wanted?.[output];
        const tensor = rows
          ? readRows(port, rows, from)
          : readOutput(port, from);
        // The caller of `run` receives its failure.
        tensor.catch(() => {});
        return [output, tensor];
      },
    );
    if (!this.runsAhead) await Promise.all(reads);
    return read;
  }

  #memoryOf(rank: number): RankMemory {
    const memory = this.#ranks.find((memory) => memory.rank === rank);
    invariant(memory, `rank ${rank} lives in another process`);
    return memory;
  }

  #writeCounts(memory: RankMemory, counts: readonly number[]): void {
    for (const name of this.#countsBuffers) {
      if (!memory.has(name)) continue;
      memory.write(name, 0, bytesOf(new Uint32Array(counts)));
    }
  }
}
