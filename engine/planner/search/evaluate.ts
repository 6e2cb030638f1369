/** One replica on a mesh: what its ranks hold, by exact bytes, and what its steps take. */

import type { ZeroStage } from "../../../compiler/mod.ts";
import {
  MachineError,
  ModelError,
  PlacementError,
} from "../../../spec/errors.ts";
import type { Machine } from "../../../spec/machine.ts";
import { meshSizes } from "../../../spec/mesh.ts";
import type { Plan } from "../../../spec/plan/plan.ts";
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
  compileStandIns,
  type CompileStandInsOptions,
  type ModelTarget,
} from "../summary/compiled.ts";
import { type PhaseWorkload, predictSteps } from "../summary/predictions.ts";
import { limitsOf } from "../summary/problems.ts";
import { summarizeRanks } from "../summary/ranks.ts";
import {
  compileTrainingStandIns,
  type TrainingStandIns,
} from "../summary/training.ts";
import type { ModelWeights } from "../summary/weights.ts";
import { meshOf, type ReplicaMesh, replicaRanks } from "./meshes.ts";

/** What is searched for: many prompts at once, the next token of many sequences, or a step of training. */
export type SearchPhase = "prefill" | "decode" | "train";

/** How rows are sent, and of training what is shared and what is computed again. */
export interface SearchStrategy extends Strategy {
  readonly chunks: number;
  /** Default: 0, nothing is shared. */
  readonly zero?: ZeroStage;
  readonly recompute?: boolean;
}

/** What is the same for all meshes. */
export interface SearchTask {
  readonly target: ModelTarget;
  readonly files: FileSystem;
  readonly machine: Machine;
  readonly phase: SearchPhase;
  /** Positions of a sequence. */
  readonly context: number;
  readonly experts?: ExpertLoad | undefined;
  readonly compile: Pick<CompileStandInsOptions, "dtype" | "limits">;
}

/** A plan of one replica. */
export interface ReplicaPlan {
  readonly mesh: ReplicaMesh;
  readonly ranks: number;
  readonly strategy: SearchStrategy;
  /** There is room for so many: sequences (decode, train), tokens (prefill) of each group of `tp` ranks. */
  readonly load: number;
  readonly plan: Plan;
  readonly weights: ModelWeights;
  /** The ranks that hold most. */
  readonly fullest: RankClass;
  /** Of training: plans with one layer more, and how many layers are equal to that one. */
  readonly grown?: TrainingStandIns["grown"];
}

/** A mesh that was thrown out, and why. */
export interface ThrownOut {
  readonly mesh: ReplicaMesh;
  readonly why: string;
}

/** A step of a replica. */
export interface ReplicaStep {
  readonly of: ReplicaPlan;
  /** Tokens of the step on all ranks, and of how many sequences. */
  readonly tokens: number;
  readonly sequences: number;
  readonly step: Prediction;
}

/** Compile a replica with room for a load; or why none can be: the model has no such sharding, or it is over a limit. */
export async function compileReplica(
  task: SearchTask,
  mesh: ReplicaMesh,
  { strategy = { chunks: 1 }, load }: {
    readonly strategy?: SearchStrategy;
    readonly load: number;
  },
): Promise<ReplicaPlan | ThrownOut> {
  try {
    const replica = await compileLoad(task, mesh, { strategy, load });
    const { plan, weights } = replica;
    const limits = limitsOf(task.machine, task.compile.limits);
    const [problem] = limitProblems(plan, limits, {
      times: weights.stands.times,
    });
    return problem ? { mesh, why: problem.what } : replica;
  } catch (error) {
    const cannot = error instanceof PlacementError ||
      error instanceof MachineError ||
      // A strategy need not be for every model, such as for one with packed weights.
      error instanceof ModelError && strategyFlags(strategy).length > 0;
    if (!cannot) throw error;
    // What is wrong, without the remedy: other meshes are tried anyway.
    return { mesh, why: error.message.split(". ")[0]! };
  }
}

async function compileLoad(
  task: SearchTask,
  mesh: ReplicaMesh,
  { strategy, load }: Pick<ReplicaPlan, "strategy" | "load">,
): Promise<ReplicaPlan> {
  const { target, files, machine } = task;
  const { tokens, sequences } = stepOf(task, mesh, load);
  if (task.phase === "train") {
    const compiled = await compileTrainingStandIns(target, {
      ...strategy,
      machine,
      mesh: meshSizes(meshOf(mesh)),
      ...task.compile,
      bounds: {
        maxTokens: tokens,
        maxSequences: sequences,
        maxContext: task.context,
      },
    });
    return { mesh, ranks: replicaRanks(mesh), strategy, load, ...compiled };
  }
  const { plan, weights } = await compileStandIns(target, files, {
    ...task.compile,
    ...strategy,
    machine,
    mesh: meshSizes(meshOf(mesh)),
    bounds: {
      maxTokens: tokens,
      maxSequences: sequences,
      maxContext: task.context,
    },
    // Caches are in pages, of which sequences have as many as their tokens are in.
    need: {
      tokens,
      sequences,
      context: task.context,
      lengths: new Array<number>(sequences).fill(
        task.phase === "decode" ? task.context : Math.ceil(tokens / sequences),
      ),
    },
    // Logits of last tokens only, as those who serve a model want them.
    next: {},
  });
  const { times } = weights.stands;
  const ranks = summarizeRanks(plan, { machine, times, experts: [] });
  return {
    mesh,
    ranks: replicaRanks(mesh),
    strategy,
    load,
    plan,
    weights,
    fullest: ranks.reduce((a, b) => b.bytes.total > a.bytes.total ? b : a),
  };
}

/** What training may take of a device: its scratch memory is known to some percent only. */
const TRAINED_SHARE = 0.97;

/** Whether the fullest rank has enough memory. */
export function fits(
  { fullest: { bytes, limit = Infinity }, grown }: ReplicaPlan,
): boolean {
  return bytes.total <= (grown ? TRAINED_SHARE : 1) * limit;
}

/** Predict a step of a load; 0: one sequence on all ranks. */
export function stepReplica(
  task: SearchTask,
  of: ReplicaPlan,
  load = of.load,
): ReplicaStep {
  const { plan, weights } = of;
  const { machine, phase, experts } = task;
  const known = stepOf(task, of.mesh, load);
  const step: PhaseWorkload = [phase, {
    ...known,
    past: phase === "decode" ? task.context - 1 : 0,
  }];
  if (of.grown) {
    const workload = { ...known, past: 0, ...experts ? { experts } : {} };
    const first = simulate(plan, machine, workload);
    const all = of.grown.reduce(
      (sum, { plan, layers }) =>
        withLayers(sum, layers, {
          from: first,
          to: simulate(plan, machine, workload),
        }),
      first,
    );
    return { of, ...known, step: all };
  }
  const predicted = predictSteps(plan, {
    machine,
    experts,
    stands: weights.stands,
    workloads: [step],
  });
  return { of, ...known, step: predicted.get(phase)!.step };
}

/** A step with so many more layers, each of which takes what the first does. */
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
      exchange: part("exchange"),
      waiting: part("waiting"),
      run: part("run"),
    },
    seconds: grown(({ seconds }) => seconds),
    launches: grown(({ launches }) => launches),
    multiplyAdds: grown(({ multiplyAdds }) => multiplyAdds),
    expertBytes: grown(({ expertBytes }) => expertBytes),
    sentBytes: grown(({ sentBytes }) => sentBytes),
  };
}

/** Tokens and sequences of all ranks. Ranks of `ep` have sequences of their own. */
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
