/** Executes a plan: outer loop over steps, inner loop over ranks. The plan is its only source of work. */

import { DataError, invariant, MachineError } from "../spec/errors.ts";
import { exchangesAtOnce } from "../spec/plan/bytes.ts";
import type { Plan, Program } from "../spec/plan/plan.ts";
import {
  bindProgram,
  type BoundProgram,
  executeParts,
} from "./bound_program.ts";
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
import { checkInputs, countsOf, type Inputs, writeInput } from "./inputs.ts";
import {
  persistentAxes,
  persistentPort,
  readPersistentPart,
  writePersistentPart,
} from "./persistent.ts";
import { kernelsByKey } from "./kernel_key.ts";
import { RankMemory } from "./memory.ts";
import { readOutput, readRows } from "./outputs.ts";
import type { Tracer } from "./profiler.ts";
import type { TensorDirectory } from "./safetensors.ts";
import { reuseCounts, type RunCounts } from "./run_counts.ts";
import { assignAxes, itemRanks, lastingAxes, type RunAxes } from "./shard.ts";
import {
  rankStatistics,
  type Statistics,
  TrafficAccount,
} from "./statistics.ts";
import { sourceNames } from "../spec/axis_parts.ts";
import { writeTables } from "./tables.ts";
import { equalWeights } from "./shared_weights.ts";
import { loadWeights, preloadFiles } from "./weights.ts";

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
}

/** A plan loaded on devices. */
export interface Session {
  /** Runs a program. All processes must pass the same inputs. */
  run(
    program: string,
    inputs: Inputs,
    options?: RunOptions,
  ): Promise<{ [output: string]: HostTensor }>;
  /**
   * The current parameters and states, global, in f32 and in the axes of their buffers. They must be floating-point.
   * All processes must call it; only that of rank 0 receives the result.
   */
  read(names: readonly string[]): Promise<{ [name: string]: HostTensor }>;
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
  const shared =
    source && devices.every((device, i) => device === source.ranks[i]?.device)
      ? equalWeights(plan, source.plan)
      : new Set<string>();
  const ranks = devices.map((device, i) => {
    const from = source?.ranks[i];
    const buffers = [...shared].flatMap((name) =>
      from?.has(name) ? [[name, from.buffer(name)] as const] : []
    );
    const rank = remote ? remote.rank : i;
    return new RankMemory(plan, device, rank, new Map(buffers));
  });
  for (const memory of ranks) writeTables(plan, memory);
  const weights = plan.weights.filter(({ buffer }) => !shared.has(buffer));
  const load = async (
    weights: Plan["weights"],
    tensors: TensorDirectory,
    onProgress?: (done: number, total: number) => void,
  ) => {
    let written = 0;
    await loadWeights({ ...plan, weights }, ranks, tensors, {
      onProgress: (done, total) => {
        written = done;
        onProgress?.(done, total);
      },
    });
    for (const device of unique) await device.idle();
    return written;
  };
  await load(
    weights,
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
      load(
        weights.filter((weight) =>
          sourceNames(plan, weight).some((name) => tensors.has(name))
        ),
        tensors,
      ),
  };
  const session = new LoadedSession(plan, ranks, loaded);
  LOADED.set(session, { plan, ranks });
  return session;
}

/** Plans and memory of sessions. */
const LOADED = new WeakMap<Session, {
  readonly plan: Plan;
  readonly ranks: readonly RankMemory[];
}>();

class LoadedSession implements Session {
  readonly load: Session["load"];
  readonly #plan: Plan;
  readonly #ranks: readonly RankMemory[];
  readonly #programs: ReadonlyMap<string, BoundProgram>;
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
  #running = false;

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
    this.#programs = new Map(
      plan.programs.map((program) => [
        program.name,
        bindProgram(program, context),
      ]),
    );
    this.#staging.allocate(exchangesAtOnce(plan));
  }

  async run(
    name: string,
    inputs: Inputs,
    options: RunOptions = {},
  ): Promise<{ [output: string]: HostTensor }> {
    const program = this.#plan.programs.find((p) => p.name === name);
    const bound = this.#programs.get(name);
    if (!program || !bound) {
      throw new DataError(
        `Cannot run program '${name}': the plan has only ${
          [...this.#programs.keys()].map((n) => `'${n}'`).join(", ")
        }`,
      );
    }
    const wanted = options.outputs ?? Object.keys(program.outputs);
    for (const output of wanted) {
      if (Object.hasOwn(program.outputs, output)) continue;
      throw new DataError(
        `Cannot read output '${output}': program '${name}' has only ${
          Object.keys(program.outputs).map((n) => `'${n}'`).join(", ")
        }`,
      );
    }
    if (this.#running) {
      throw new DataError(
        `Cannot run program '${name}': another run is in progress. Await it first`,
      );
    }
    this.#running = true;
    try {
      const lengths = checkInputs(this.#plan, program, inputs);
      if (options.fresh) this.#axes.sequenceRanks.clear();
      const axes = assignAxes(this.#plan, lengths, inputs, this.#axes);
      const counts = this.#countsOf(lengths, axes);
      const reported = counts === this.#counts;
      this.#counts = counts;
      writeAssignments(this.#assignmentBuffers, this.#ranks, axes);
      for (const memory of this.#ranks) {
        if (!reported) this.#writeCounts(memory, counts[memory.rank]!);
        for (const [input, port] of Object.entries(program.inputs)) {
          const tensor = inputs[input]!;
          if (!memory.has(port.buffer)) continue;
          writeInput({ name: input, port }, tensor, memory, axes);
        }
      }
      this.#tracer?.begin(name, itemRanks(this.#plan, program, axes));
      const traffic = this.#traffic;
      await executeParts(
        bound.parts,
        counts,
        traffic && ((collective) => traffic.predict(collective, counts)),
      );
      this.#tracer?.end();
      return await this.#read(program, axes, { ...options, outputs: wanted });
    } catch (error) {
      // Work of this process must end before the next run; other processes may never answer.
      if (!this.#remote) await bound.inFlight.settle();
      throw error instanceof DeadlineError ? inStep(error, program) : error;
    } finally {
      this.#running = false;
    }
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
  ): Promise<{ [name: string]: HostTensor }> {
    const [plan, ranks, remote] = [this.#plan, this.#ranks, this.#remote];
    const axes = persistentAxes(plan);
    const from = { plan, ranks, remote, axes, everywhere: false };
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
    const streaming = this.#ranks[0]?.device.streaming?.();
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

  async #read(
    program: Program,
    axes: RunAxes,
    options: RunOptions & { readonly outputs: readonly string[] },
  ): Promise<{ [output: string]: HostTensor }> {
    const { outputs, rows: wanted, everywhere = false } = options;
    const [plan, ranks, remote] = [this.#plan, this.#ranks, this.#remote];
    const from = { plan, ranks, remote, axes, everywhere };
    const readOne = async (output: string) => {
      const port = program.outputs[output]!;
      const rows = wanted?.[output];
      return rows
        ? await readRows(port, rows, from)
        : await readOutput(port, from);
    };
    const read: (HostTensor | undefined)[] = [];
    // Processes must gather the same output at the same time; a single process reads all at once.
    if (remote) {
      for (const output of outputs) {
        read.push(await readOne(output));
      }
    } else read.push(...await Promise.all(outputs.map(readOne)));
    return Object.fromEntries(
      outputs.flatMap((output, i) => read[i] ? [[output, read[i]]] : []),
    );
  }

  #memoryOf(rank: number): RankMemory {
    const memory = this.#ranks.find((memory) => memory.rank === rank);
    invariant(memory, `rank ${rank} lives in another process`);
    return memory;
  }

  #writeCounts(memory: RankMemory, counts: readonly number[]): void {
    for (const name of this.#countsBuffers) {
      if (!memory.has(name)) continue;
      memory.device.write(
        memory.buffer(name),
        0,
        bytesOf(new Uint32Array(counts)),
      );
    }
  }
}

/** Adds the step of a kernel that took too long, or its candidates, to the error. */
function inStep(
  { kernels, deadlineMs }: DeadlineError,
  { name, steps }: Program,
): DeadlineError {
  const launches = steps.flatMap((step, i) =>
    step.op === "launch" && kernels.includes(step.kernel)
      ? [`${name}[${i}]`]
      : []
  );
  const at = launches.length === 0
    ? ` of program '${name}'`
    : ` in ${launches.slice(0, 4).join(" or ")}${
      launches.length > 4 ? " …" : ""
    }`;
  return new DeadlineError(kernels, deadlineMs, at);
}

/** Checks the plan's limits against the devices. A GPU was opened with the limits of the plan. */
function checkLimits(plan: Plan, devices: readonly Device[]): void {
  for (const { name, limits } of devices) {
    for (const [limit, value] of Object.entries(plan.requiredLimits)) {
      const has = limits[limit];
      if (has === undefined || value <= has) continue;
      throw new MachineError(
        `Cannot run the plan on '${name}': it needs ${limit} = ${value}, and the device has ${has}. Compile the model for this device`,
      );
    }
  }
}

function checkDevices(devices: readonly Device[], ranks: number): void {
  if (devices.length !== ranks) {
    throw new MachineError(
      `Cannot run the plan on ${devices.length} ranks: it is made for ${ranks}. Give one device for each rank`,
    );
  }
  const [first] = devices;
  const other = devices.find((device) =>
    device.kind !== first!.kind || device.name !== first!.name
  );
  if (other) {
    throw new MachineError(
      `Cannot run the plan on devices '${
        first!.name
      }' and '${other.name}': different kinds of device compute different bits. Use one kind for all ranks`,
    );
  }
}
