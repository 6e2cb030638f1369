/** Evaluates one replica on a mesh: the memory of its ranks, by exact bytes, and the times of its steps. */

import type { HeldBuffer, ZeroStage } from "../../../compiler/mod.ts";
import { heldAxis, partLengths } from "../../../spec/axis_parts.ts";
import { isPageAxis, WITHIN } from "../../../spec/pages.ts";
import { cachedWith } from "../../../spec/bounded_cache.ts";
import {
  MachineError,
  ModelError,
  PlacementError,
} from "../../../spec/errors.ts";
import type { Machine } from "../../../spec/machine.ts";
import { meshSizes } from "../../../spec/mesh.ts";
import type { Plan } from "../../../spec/plan/plan.ts";
import { mapRanks, maxOverRanks, sumPerRank } from "../../../spec/per_rank.ts";
import type { RankClass } from "../../../spec/plan_summary.ts";
import { limitProblems } from "../../../spec/problems.ts";
import { type Strategy, strategyFlags } from "../../../spec/strategies.ts";
import type { FileSystem } from "../../files.ts";
import {
  type ExpertLoad,
  type Parts,
  type Prediction,
  simulate,
} from "../simulate/mod.ts";
import {
  compileRepresentatives,
  type CompileRepresentativesOptions,
  heldRepresentatives,
  type ModelTarget,
} from "../summary/compiled.ts";
import { assumptionText } from "../summary/assumptions.ts";
import { type PhaseWorkload, predictSteps } from "../summary/predictions.ts";
import { limitsOf } from "../summary/problems.ts";
import { summarizeRanks } from "../summary/ranks.ts";
import {
  compileTrainingRepresentatives,
  type TrainingRepresentatives,
} from "../summary/training.ts";
import type { ModelWeights } from "../summary/weights.ts";
import {
  meshOf,
  microBatchesOf,
  type ReplicaMesh,
  replicaRanks,
} from "./meshes.ts";

/** The optimized phase: prefill of many prompts, decode of many sequences, or a training step. */
export type SearchPhase = "prefill" | "decode" | "train";

/** Objective: throughput of all devices, step time, or memory of a rank. */
export type Objective = "throughput" | "latency" | "memory";

/** Dispatch strategy, and for training ZeRO stage and recomputation. */
export interface SearchStrategy extends Strategy {
  readonly chunks: number;
  /** ZeRO stage. Default: 0, no sharding. */
  readonly zero?: ZeroStage;
  readonly recompute?: boolean;
}

/** Compile options of a search that change the bits of results. */
export const SEARCH_NUMERICS = [
  "numerics",
  "wire",
  "operands",
  "kvCacheDtype",
] as const satisfies readonly (keyof CompileRepresentativesOptions)[];

/** Parameters common to all meshes. */
export interface SearchTask {
  readonly target: ModelTarget;
  readonly files: FileSystem;
  readonly machine: Machine;
  readonly phase: SearchPhase;
  readonly objective: Objective;
  /** Positions per sequence. */
  readonly context: number;
  readonly experts?: ExpertLoad | undefined;
  /** Maximum seconds of a step: to the first token in prefill, between tokens in decode. Default: none. */
  readonly goal?: number | undefined;
  readonly compile: Pick<
    CompileRepresentativesOptions,
    "dtype" | "limits" | typeof SEARCH_NUMERICS[number]
  >;
}

/** Facts of a replica's plan. */
export interface Replica {
  readonly mesh: ReplicaMesh;
  readonly ranks: number;
  readonly strategy: SearchStrategy;
  /** Capacity: sequences (decode, train), or tokens (prefill) per group of `tp` ranks. */
  readonly load: number;
  /** The ranks with the most memory. */
  readonly fullest: RankClass;
  /** Pages of caches on a rank, those of layers with full attention if there are any, and positions of a page. */
  readonly pages?: { readonly count: number; readonly size: number };
  readonly microBatches: number;
  /** Ops of its steps, with their parts. */
  readonly ops: string;
  /** Whether all tokens are deduplicated, as if it were requested. */
  readonly deduplicates: boolean;
  /** Rates and dtypes that its predicted times assume. */
  readonly assumes: string;
}

/** A replica with its plan. */
export interface ReplicaPlan extends Replica {
  readonly plan: Plan;
  readonly weights: ModelWeights;
  /** For training: plans with one more layer, and the number of equal layers. */
  readonly grown?: TrainingRepresentatives["grown"];
}

/** A rejected mesh, and the reason. */
export interface ThrownOut {
  readonly mesh: ReplicaMesh;
  readonly why: string;
}

/** A step of a replica. */
export interface ReplicaStep {
  readonly of: Replica;
  /** Tokens of the step on all ranks, and sequences. */
  readonly tokens: number;
  readonly sequences: number;
  readonly step: Prediction;
  readonly tokensPerSecond: number;
}

/** Options of `compileReplica`. */
interface ReplicaOptions {
  /** Strategy of the replica. Default: one without chunks. */
  readonly strategy?: SearchStrategy;
  readonly load: number;
}

const DEFAULT_STRATEGY: SearchStrategy = { chunks: 1 };

type Compiled = ReplicaPlan | ThrownOut;

/** The replicas of a search, by mesh, strategy and load. */
const compiled = new WeakMap<SearchTask, Map<string, Promise<Compiled>>>();

/**
 * Compiles a replica with capacity for a load, once in a search. Returns the reason if the model has no such sharding
 * or if it exceeds a limit.
 */
export async function compileReplica(
  task: SearchTask,
  mesh: ReplicaMesh,
  { strategy = DEFAULT_STRATEGY, load }: ReplicaOptions,
): Promise<Compiled> {
  return await cachedWith(compiled, task, {
    key: replicaKey(mesh, { strategy, load }),
    create: () => compileOrReject(task, mesh, { strategy, load }),
  });
}

/** Whether this thread has compiled a replica. */
export function hasCompiled(
  task: SearchTask,
  mesh: ReplicaMesh,
  options: ReplicaOptions,
): boolean {
  return compiled.get(task)?.has(replicaKey(mesh, options)) ?? false;
}

function replicaKey(
  mesh: ReplicaMesh,
  { strategy = DEFAULT_STRATEGY, load }: ReplicaOptions,
): string {
  return JSON.stringify([meshOf(mesh), strategy, load]);
}

async function compileOrReject(
  task: SearchTask,
  mesh: ReplicaMesh,
  { strategy, load }: Required<ReplicaOptions>,
): Promise<Compiled> {
  try {
    const replica = await compileLoad(task, mesh, { strategy, load });
    const { plan, weights } = replica;
    const limits = limitsOf(task.machine, task.compile.limits);
    const [problem] = limitProblems(plan, limits, {
      times: weights.representatives.times,
    });
    return problem ? { mesh, why: problem.what } : replica;
  } catch (error) {
    if (!isRejection(error, strategy)) throw error;
    // The problem without the remedy: other meshes are tried anyway.
    return { mesh, why: error.message.split(". ")[0]! };
  }
}

/** Whether an error of the compiler rejects a replica. */
function isRejection(
  error: unknown,
  strategy: SearchStrategy,
): error is Error {
  return error instanceof PlacementError || error instanceof MachineError ||
    // A strategy may not support every model, such as one with packed weights.
    error instanceof ModelError && strategyFlags(strategy).length > 0;
}

async function compileLoad(
  task: SearchTask,
  mesh: ReplicaMesh,
  { strategy, load }: Pick<ReplicaPlan, "strategy" | "load">,
): Promise<ReplicaPlan> {
  const { target, files, machine } = task;
  if (task.phase === "train") {
    const { tokens, sequences } = stepOf(task, mesh, load);
    const compiled = await compileTrainingRepresentatives(target, {
      ...strategy,
      machine,
      mesh: meshSizes(meshOf(mesh)),
      microBatches: microBatchesOf(mesh),
      ...task.compile,
      bounds: {
        maxTokens: tokens,
        maxSequences: sequences,
        maxContext: task.context,
      },
    });
    return {
      ...replicaOf(task, compiled.plan, { mesh, strategy, load }),
      ...compiled,
    };
  }
  const { plan, weights } = await compileRepresentatives(
    target,
    files,
    representativeOptions(task, mesh, { strategy, load }),
  );
  const { times } = weights.representatives;
  const ranks = summarizeRanks(plan, { machine, times, experts: [] });
  return {
    ...replicaOf(task, plan, { mesh, strategy, load }),
    plan,
    weights,
    fullest: ranks.reduce((a, b) => b.bytes.total > a.bytes.total ? b : a),
  };
}

/** Compile options of a replica that is not trained. */
function representativeOptions(
  task: SearchTask,
  mesh: ReplicaMesh,
  { strategy, load }: Pick<ReplicaPlan, "strategy" | "load">,
): CompileRepresentativesOptions {
  const { machine } = task;
  const { tokens, sequences } = stepOf(task, mesh, load);
  return {
    ...task.compile,
    ...strategy,
    machine,
    mesh: meshSizes(meshOf(mesh)),
    bounds: {
      maxTokens: tokens,
      maxSequences: sequences,
      maxContext: task.context,
    },
    // Caches are paged, with as many pages as the tokens of sequences need.
    need: {
      tokens,
      sequences,
      context: task.context,
      lengths: new Array<number>(sequences).fill(
        task.phase === "decode" ? task.context : Math.ceil(tokens / sequences),
      ),
    },
    // Logits of last tokens only, as in serving.
    next: {},
  };
}

/** Bytes on the rank with the most. */
export interface HeldBytes {
  /** Weights and states. */
  readonly total: number;
  readonly state: number;
}

/**
 * Bytes of weights and states of a replica with capacity for a load, without compiling kernels. Undefined if the model
 * has no such sharding.
 */
export async function heldBytes(
  task: SearchTask,
  mesh: ReplicaMesh,
  { strategy, load }: Pick<ReplicaPlan, "strategy" | "load">,
): Promise<HeldBytes | undefined> {
  const options = representativeOptions(task, mesh, { strategy, load });
  try {
    const { held, weights: { representatives } } = await heldRepresentatives(
      task.target,
      task.files,
      options,
    );
    const most = (buffers: readonly HeldBuffer[]) =>
      maxOverRanks(sumPerRank(
        buffers.map(({ name, bytes }) =>
          mapRanks([bytes], ([n]) => representatives.times(name) * n!)
        ),
      ));
    const states = held.filter(({ kind }) => kind === "state");
    return { total: most(held), state: most(states) };
  } catch (error) {
    if (isRejection(error, strategy)) return undefined;
    throw error;
  }
}

function replicaOf(
  { machine }: SearchTask,
  plan: Plan,
  { mesh, strategy, load }: Pick<Replica, "mesh" | "strategy" | "load">,
): Omit<Replica, "fullest"> {
  const { steps } = plan.programs[0]!;
  const routings = (name: string) =>
    new Set(
      steps.flatMap(({ part }) => part?.part === name ? [part.routing] : []),
    ).size;
  const sent = routings("exchange indices");
  const pages = Object.keys(plan.axes).filter(isPageAxis).flatMap((name) => {
    const axis = heldAxis(plan, name);
    return partLengths(plan, axis) ?? [axis.size];
  });
  return {
    mesh,
    ranks: replicaRanks(mesh),
    strategy,
    load,
    microBatches: plan.pipeline?.microBatches ?? 1,
    ...pages.length > 0
      ? {
        pages: { count: Math.max(...pages), size: plan.axes[WITHIN]!.size },
      }
      : {},
    ops: steps.map(({ op, part }) => `${op} ${part?.part}`).join(),
    deduplicates: sent > 0 && sent === routings("count"),
    assumes: assumptionText(plan, machine),
  };
}

/** Fraction of a device's memory for training: its scratch memory is known only to a few percent. */
const TRAINED_SHARE = 0.97;

/** Whether the rank with the most memory fits. */
export function fits(
  { fullest: { bytes, limit = Infinity }, grown }: ReplicaPlan,
): boolean {
  return bytes.total <= (grown ? TRAINED_SHARE : 1) * limit;
}

/** Predicts a step of a load; 0: one sequence on all ranks. */
export function stepReplica(
  task: SearchTask,
  of: ReplicaPlan,
  load = of.load,
): ReplicaStep {
  const { plan, weights, grown, ...replica } = of;
  const { machine, phase, experts } = task;
  const known = stepOf(task, of.mesh, load);
  const step: PhaseWorkload = [phase, {
    ...known,
    past: phase === "decode" ? task.context - 1 : 0,
  }];
  if (grown) {
    const workload = { ...known, past: 0, ...experts ? { experts } : {} };
    const first = simulate(plan, machine, workload);
    const all = grown.reduce(
      (sum, { plan, layers }) =>
        withLayers(sum, layers, {
          from: first,
          to: simulate(plan, machine, workload),
        }),
      first,
    );
    const microBatches = microBatchesOf(of.mesh);
    const tokens = microBatches * known.tokens;
    return {
      of: replica,
      tokens,
      sequences: microBatches * known.sequences,
      step: all,
      tokensPerSecond: tokens / all.seconds,
    };
  }
  const predicted = predictSteps(plan, {
    machine,
    experts,
    representatives: weights.representatives,
    workloads: [step],
  });
  const { step: one, tokensPerSecond } = predicted.get(phase)!;
  return { of: replica, ...known, step: one, tokensPerSecond };
}

/** A step with more layers, each taking as long as the first. */
function withLayers(
  step: Prediction,
  layers: number,
  { from, to }: { readonly from: Prediction; readonly to: Prediction },
): Prediction {
  const grown = (of: (step: Prediction) => number) =>
    of(step) + layers * (of(to) - of(from));
  const part = (name: keyof Parts) => grown(({ parts }) => parts[name]);
  return {
    ...step,
    parts: {
      launch: part("launch"),
      arithmetic: part("arithmetic"),
      memory: part("memory"),
      disk: part("disk"),
      exchange: part("exchange"),
      waiting: part("waiting"),
      run: part("run"),
    },
    seconds: grown(({ seconds }) => seconds),
    busiest: grown(({ busiest }) => busiest),
    launches: grown(({ launches }) => launches),
    multiplyAdds: grown(({ multiplyAdds }) => multiplyAdds),
    expertBytes: grown(({ expertBytes }) => expertBytes),
    sentBytes: grown(({ sentBytes }) => sentBytes),
  };
}

/** Tokens and sequences of all ranks; in training, of a micro-batch. Ranks of `ep` have separate sequences. */
function stepOf(
  { phase, context }: SearchTask,
  { dp = 1, ep }: ReplicaMesh,
  load: number,
): { readonly tokens: number; readonly sequences: number } {
  if (phase === "train") {
    const sequences = dp * ep * load;
    return { tokens: sequences * context, sequences };
  }
  if (phase === "decode") {
    const sequences = Math.max(1, ep * load);
    return { tokens: sequences, sequences };
  }
  const tokens = load === 0 ? context : ep * load;
  return {
    tokens,
    sequences: load === 0 ? 1 : Math.max(ep, Math.ceil(tokens / context)),
  };
}
