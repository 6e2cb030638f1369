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
} from "./exchange/communicator.ts";
import {
  type AssignmentBuffer,
  assignmentBuffers,
  writeAssignments,
} from "./assignment.ts";
import { DeadlineError } from "./device.ts";
import { KnownCounts } from "./exchange/exchange.ts";
import { bytesOf, type HostTensor } from "./host_tensor.ts";
import {
  checkInputs,
  countsOf,
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
import type { TensorDirectory } from "./weights/safetensors.ts";
import { reuseCounts, type RunCounts } from "./run_counts.ts";
import { seriesLength, SeriesOutputs } from "./series.ts";
import type {
  CreateSessionOptions,
  RunOptions,
  RunSeries,
  SeriesRun,
  Session,
} from "./session.ts";
import { assignAxes, itemRanks, lastingAxes, type RunAxes } from "./shard.ts";
import {
  rankStatistics,
  type Statistics,
  TrafficAccount,
} from "./statistics.ts";
import { writeTables } from "./tables.ts";
import { allocateRanks, type Loaded } from "./rank_memories.ts";
import {
  loadWeights,
  type LoadWeightsOptions,
  preloadFiles,
  withGivenWeights,
} from "./weights/load.ts";

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
    tensors,
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
    options: LoadWeightsOptions = {},
  ) => {
    const written = await loadWeights(from, ranks, tensors, options);
    for (const device of unique) await device.idle();
    return written;
  };
  await load(loading, tensors, {
    onProgress: (done, total) =>
      onProgress?.({ stage: "weights", done, total }),
    areMapped: true,
  });
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
  readonly series?: RunSeries;
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
  /** Milliseconds of the last run. */
  #runMs = Infinity;

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
    const [first] = ranks;
    const isAlone = !tracer && !this.#remote && plan.ranks === 1 &&
      !first!.slots;
    this.runsAhead = isAlone && first!.device.kind === "gpu";
    if (isAlone && !this.runsAhead) this.series = this.#seriesOn(first!);
    this.#staging.allocate(exchangesAtOnce(plan));
  }

  async run(
    name: string,
    inputs: Inputs,
    { fed, ...options }: RunOptions = {},
  ): Promise<{ [output: string]: HostTensor }> {
    const [outputs] = await this.#run(name, [{ inputs, fed }], options);
    return outputs!;
  }

  #seriesOn(memory: RankMemory): RunSeries {
    const saved = new SeriesOutputs(this.#plan, memory);
    const msOf = () => this.#runMs;
    return {
      get length() {
        return seriesLength(msOf());
      },
      run: (name, runs, options = {}) => this.#run(name, runs, options, saved),
    };
  }

  /** Runs a program with each of the inputs. `saved`: receives the outputs of all runs but the last. */
  async #run(
    name: string,
    runs: readonly SeriesRun[],
    options: RunOptions,
    saved?: SeriesOutputs,
  ): Promise<{ [output: string]: HostTensor }[]> {
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
    const [lengths, ...others] = runs.map(({ inputs }) =>
      checkInputs(this.#plan, program, inputs)
    );
    if (!others.every((other) => areEqual(other, lengths!))) {
      throw new DataError(
        `Cannot run program '${name}' in series: the inputs of its runs have different lengths. Run them one by one`,
      );
    }
    const { inputs } = runs[0]!;
    if (this.#tracer && this.#inFlight > 0) {
      throw new DataError(
        `Cannot trace program '${name}': another run is in progress. Await it first`,
      );
    }
    if (options.fresh) this.#axes.sequenceRanks.clear();
    const axes = assignAxes(this.#plan, lengths!, inputs, this.#axes);
    const counts = this.#countsOf(lengths!, axes);
    const reported = counts === this.#counts;
    this.#counts = counts;
    this.#inFlight++;
    const started = performance.now();
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
        }
        const outputs = wanted.filter((output) =>
          this.#laneOf(program.outputs[output]!) === lane
        );
        for (const [i, { inputs, fed }] of runs.entries()) {
          for (const memory of lane.ranks) {
            for (const [input, port] of Object.entries(program.inputs)) {
              if (!memory.has(port.buffer)) continue;
              writeInput({ name: input, port }, inputs[input]!, memory, axes);
            }
            if (fed) feedInput(program, memory, fed);
          }
          for (const part of byLane[index]!) {
            const wait = run.execute(part);
            if (wait) await wait;
          }
          if (i < runs.length - 1) saved!.save(i, program, outputs);
        }
        if (--left === 0) this.#tracer?.end();
        return await this.#read(program, axes, { ...options, outputs });
      });
      const outputs = new Map(
        await Promise.all(
          read.flat().map(async ([output, tensor]) =>
            [output, await tensor] as const
          ),
        ),
      );
      const last = Object.fromEntries(wanted.flatMap((output) => {
        const tensor = outputs.get(output);
        return tensor ? [[output, tensor]] : [];
      }));
      const earlier = await saved?.read(runs.length - 1, program, wanted, axes);
      this.#runMs = (performance.now() - started) / runs.length;
      return [...earlier ?? [], last];
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
    const same = !this.#isPlaced && before && areEqual(before, lengths);
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

/** Whether axes have the same lengths. */
function areEqual(
  a: ReadonlyMap<string, number>,
  b: ReadonlyMap<string, number>,
): boolean {
  return a.size === b.size &&
    [...a].every(([axis, length]) => b.get(axis) === length);
}
