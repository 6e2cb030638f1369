/** Which mesh, strategy and batch of a model are best on a machine: what does not fit is left out, the rest is simulated. */

import { placeRanks } from "../../spec/machine.ts";
import { sizeText } from "../../spec/size_text.ts";
import { DataError } from "../../spec/errors.ts";
import { type Crossover, findCrossover } from "./crossover.ts";
import {
  compileReplica,
  fits,
  type ReplicaPlan,
  type ReplicaStep,
  type SearchTask,
  stepReplica,
  type Strategy,
} from "./evaluate.ts";
import {
  leastWeights,
  meshName,
  type ReplicaMesh,
  replicaMeshes,
  replicaRanks,
} from "./meshes.ts";
import { whySlower } from "./why.ts";

/** What is best: most tokens a second of all devices, the shortest step, or the least memory of a rank. */
export type Objective = "throughput" | "latency" | "memory";

/** A configuration that fits. */
export interface Found {
  readonly mesh: ReplicaMesh;
  /** Copies of the model, each on a mesh of its own. */
  readonly replicas: number;
  readonly strategy: Strategy;
  /** Tokens of a step of all replicas, and of how many sequences. */
  readonly tokens: number;
  readonly sequences: number;
  /** Of the fullest rank, and what it may hold. */
  readonly bytes: number;
  readonly limit: number | undefined;
  readonly seconds: number;
  /** Of all replicas. */
  readonly tokensPerSecond: number;
  readonly step: ReplicaStep;
  /** Nothing else is at least as good in speed, time of a step and memory. */
  readonly pareto: boolean;
  /** Why it is not the best one; of that, what bounds it. */
  readonly why: string;
}

/** A mesh that was thrown out, and why. */
export interface ThrownOut {
  readonly mesh: ReplicaMesh;
  readonly why: string;
}

/** What was found. */
export interface Searched {
  /** The best of each mesh, best first. */
  readonly found: readonly Found[];
  /** Other configurations that are not worse in everything. */
  readonly pareto: readonly Found[];
  readonly thrownOut: readonly ThrownOut[];
  /** Replicas against expert parallelism, where both fit. */
  readonly crossover: Crossover | undefined;
  /** Most tokens a second of so many devices, and of one replica on all of them. */
  readonly curve: readonly CurvePoint[];
}

/** A point of the curve of speed over devices. */
export interface CurvePoint {
  readonly devices: number;
  /** Undefined: nothing fits. */
  readonly best: Found | undefined;
  /** All devices as one replica; undefined where that does not fit, or there are fewer experts. */
  readonly single: Found | undefined;
}

/** Options of `search`. */
export interface SearchOptions {
  readonly objective: Objective;
  /** Ranks to use. Default: all of the machine. */
  readonly ranks?: number | undefined;
  readonly chunks?: readonly number[];
}

/** Sequences of a rank (decode) and tokens (prefill), at most. */
const MOST_LOAD = { decode: 512, prefill: 4096 } as const;

/** Loads that are tried besides the largest that fits, as parts of it. */
const PARTS = [1, 1 / 8];

/** Meshes whose strategies are tried. */
const FINALISTS = 2;

const STRATEGIES: readonly Strategy[] = [
  { chunks: 2 },
  { chunks: 1, deduplicate: true },
  { chunks: 2, deduplicate: true },
];

/** Search. Throws DataError where the machine has fewer ranks than are asked for. */
export async function search(
  task: SearchTask,
  { objective, ranks: asked }: SearchOptions,
): Promise<Searched> {
  const { machine } = task;
  const places = placeRanks(machine);
  const ranks = asked ?? places.length;
  if (ranks > places.length) {
    throw new DataError(
      `Cannot search ${ranks} ranks: the machine '${machine.name}' has ${places.length}. Ask for fewer, or describe a larger machine`,
    );
  }
  const smallest = await compileReplica(task, { ep: 1, tp: 1 }, {
    load: 1,
  });
  const meshes = replicaMeshes({
    ranks: places.length,
    host: places.filter(({ host }) => host === places[0]!.host).length,
    experts: Math.max(
      0,
      ...smallest.weights.params.map(({ expert, matrix }) =>
        expert === undefined ? 0 : matrix.count
      ),
    ),
  });
  const thrownOut: ThrownOut[] = [];
  const steps: ReplicaStep[] = [];
  for (const mesh of meshes) {
    const least = leastWeights(smallest.weights, mesh);
    const { limit = Infinity } = smallest.fullest;
    if (least > limit) {
      const why = `weights alone are ${sizeText(least)} a rank, of ${
        sizeText(limit)
      }`;
      thrownOut.push({ mesh, why });
      continue;
    }
    const plan = await largestThatFits(task, mesh);
    if ("why" in plan) thrownOut.push(plan);
    else steps.push(...stepsOf(task, plan));
  }
  const better = compareBy(objective);
  const within = () =>
    steps.filter(({ of }) => of.ranks <= ranks)
      .map((step) => foundOf(step, ranks)).sort(better);
  for (const { mesh, step } of bestOfMeshes(within()).slice(0, FINALISTS)) {
    if (replicaRanks(mesh) === 1) continue;
    for (const strategy of STRATEGIES) {
      const { load } = step.of;
      const plan = await compileReplica(task, mesh, { strategy, load });
      if (isOther(plan, step.of) && fits(plan)) {
        steps.push(...stepsOf(task, plan));
      }
    }
  }
  const all = within();
  const front = paretoOf(all);
  const [best] = all;
  const explained = (found: Found): Found => ({
    ...found,
    pareto: front.has(found),
    why: best ? whySlower(found, best, machine) : "",
  });
  return {
    found: bestOfMeshes(all).map(explained),
    pareto: [...front].map(explained),
    thrownOut,
    crossover: await findCrossover(task, bestOfMeshes(all)),
    curve: curveOf(steps, better),
  };
}

/** The plan with the largest load that fits, or why none does. */
async function largestThatFits(
  task: SearchTask,
  mesh: ReplicaMesh,
): Promise<ReplicaPlan | ThrownOut> {
  const one = await compileReplica(task, mesh, {
    load: task.phase === "decode" ? 1 : Math.min(128, task.context),
  });
  const { bytes, limit = Infinity } = one.fullest;
  if (!fits(one)) {
    const why = `needs ${sizeText(bytes.total)} a rank with ${
      task.phase === "decode" ? "a sequence" : `${one.load} tokens`
    } each, of ${sizeText(limit)}`;
    return { mesh, why };
  }
  const most = Math.min(
    MOST_LOAD[task.phase],
    task.phase === "prefill" ? task.context : Infinity,
  );
  const times = (limit - bytes.weights) / (bytes.total - bytes.weights);
  const enough = Math.min(most, one.load * times);
  for (let load = rounded(enough); load > one.load; load = rounded(load - 1)) {
    const plan = await compileReplica(task, mesh, { load });
    if (fits(plan)) return plan;
  }
  return one;
}

/** 1, 2, 3, 4, 6, 8, 12, …: the last that is not more. */
function rounded(value: number): number {
  const power = 2 ** Math.floor(Math.log2(value));
  return value >= 1.5 * power && power > 1 ? 1.5 * power : power;
}

/** Whether a strategy changes anything: where a row is sent for each choice anyway, it does not. */
function isOther({ plan: a }: ReplicaPlan, { plan: b }: ReplicaPlan): boolean {
  const [x, y] = [a, b].map(({ programs }) =>
    programs[0]!.steps.map(({ op, part }) => `${op} ${part?.part}`).join()
  );
  return x !== y;
}

/** Steps of several loads of one plan, and of a single sequence. */
function stepsOf(task: SearchTask, plan: ReplicaPlan): ReplicaStep[] {
  const loads = new Set(
    PARTS.map((part) => Math.floor(plan.load * part)).filter((n) => n > 0),
  );
  const single = task.phase === "decode" ||
    plan.mesh.ep * plan.load >= task.context;
  return [...loads, ...single ? [0] : []]
    .map((load) => stepReplica(task, plan, load));
}

function foundOf(step: ReplicaStep, ranks: number): Found {
  const { of, tokens, sequences } = step;
  const { mesh, strategy, fullest } = of;
  const replicas = Math.floor(ranks / of.ranks);
  const { seconds } = step.step;
  return {
    ...{ mesh, replicas, strategy, step, seconds },
    ...{ tokens: replicas * tokens, sequences: replicas * sequences },
    ...{ bytes: fullest.bytes.total, limit: fullest.limit },
    tokensPerSecond: replicas * tokens / seconds,
    ...{ pareto: false, why: "" },
  };
}

/** Of equally good ones, the smaller replica. */
function compareBy(objective: Objective): (a: Found, b: Found) => number {
  const of: { readonly [O in Objective]: (found: Found) => number } = {
    throughput: ({ tokensPerSecond }) => -tokensPerSecond,
    latency: ({ seconds }) => seconds,
    memory: ({ bytes }) => bytes,
  };
  const next = objective === "throughput" ? of.latency : of.throughput;
  return (a, b) =>
    of[objective](a) - of[objective](b) || next(a) - next(b) ||
    replicaRanks(a.mesh) - replicaRanks(b.mesh);
}

/** The first of each mesh. */
function bestOfMeshes(found: readonly Found[]): Found[] {
  const meshes = new Map<string, Found>();
  for (const one of found) {
    const name = meshName(one.mesh);
    if (!meshes.has(name)) meshes.set(name, one);
  }
  return [...meshes.values()];
}

/** Those that nothing else beats in speed, time of a step and memory together. */
function paretoOf(found: readonly Found[]): Set<Found> {
  const beats = (a: Found, b: Found) =>
    a.tokensPerSecond >= b.tokensPerSecond && a.seconds <= b.seconds &&
    a.bytes <= b.bytes &&
    (a.tokensPerSecond > b.tokensPerSecond || a.seconds < b.seconds ||
      a.bytes < b.bytes);
  return new Set(found.filter((b) => !found.some((a) => beats(a, b))));
}

/** Speed over devices: the best of all that fit, in as many replicas as there is room for. */
function curveOf(
  steps: readonly ReplicaStep[],
  better: (a: Found, b: Found) => number,
): CurvePoint[] {
  return Array.from({ length: 13 }, (_, i) => {
    const devices = 2 ** i;
    const found = steps.filter(({ of }) => of.ranks <= devices)
      .map((step) => foundOf(step, devices)).sort(better);
    return {
      devices,
      best: found[0],
      single: found.find(({ mesh }) => replicaRanks(mesh) === devices),
    };
  });
}
