/** Finds the first strategy of a mesh that fits, with the largest load, and then others. */

import { usableMemory } from "../../../spec/machine.ts";
import { isSame } from "../../../spec/same.ts";
import { sizeText } from "../../../spec/size_text.ts";
import { triedStrategies } from "../../../spec/strategies.ts";
import { given } from "../../given.ts";
import type { ModelWeights } from "../summary/weights.ts";
import {
  compileReplica,
  fits,
  type HeldBytes,
  heldBytes,
  type Replica,
  type ReplicaPlan,
  type ReplicaStep,
  type SearchPhase,
  type SearchStrategy,
  type SearchTask,
  stepReplica,
  type ThrownOut,
} from "./evaluate.ts";
import { beatGathering } from "./gathered.ts";
import {
  expertRanks,
  minTrainingBytes,
  minWeightBytes,
  overNodes,
  type ReplicaMesh,
} from "./meshes.ts";

/** Facts known before compilation: the weights, experts per layer or 0, and bytes of a device. */
export interface Known {
  readonly weights: ModelWeights;
  readonly experts: number;
  readonly limit: number;
}

/** Whether each rank has at least one entire expert, or there are none. */
export function hasEntireExperts(
  mesh: ReplicaMesh,
  { experts }: Pick<Known, "experts">,
): boolean {
  return experts === 0 || expertRanks(mesh) <= experts;
}

/** Maximum sequences (decode, train) and tokens (prefill) of a rank. */
const MAX_LOAD = { decode: 512, prefill: 4096, train: 16 } as const;

/** Loads that are tried besides the largest that fits, as fractions of it. */
const PARTS = [1, 1 / 8];

/** The same if steps have a maximum time. */
const GOAL_PARTS = Array.from({ length: 13 }, (_, i) => 2 ** (-i / 2));

/** Fraction of the memory beside weights that states may use; the rest is for scratch memory. */
const STATE_SHARE = 0.97;

/** Receive buffers for a nearly even load. */
const BY_NEED: SearchStrategy = { chunks: 1, receiveRows: "1.25x" };

/** Strategies in the order in which they are tried until one fits. */
const FITTED: { readonly [P in SearchPhase]: readonly SearchStrategy[] } = {
  prefill: [{ chunks: 1 }, BY_NEED],
  decode: [{ chunks: 1 }, BY_NEED],
  train: [
    { chunks: 1, zero: 1 },
    { chunks: 1, zero: 1, recompute: true },
    { chunks: 1, zero: 3, recompute: true },
  ],
};

/** Additional strategies for the best meshes of a training. */
const TRAINED: readonly SearchStrategy[] = [
  { chunks: 1, zero: 0 },
  { chunks: 1, zero: 1, recompute: true },
  { chunks: 1, zero: 3 },
  { chunks: 1, zero: 3, recompute: true },
];

/** Additional strategies for the best meshes. */
function strategiesOf(
  { phase, compile: { numerics = "exact" } }: SearchTask,
): readonly SearchStrategy[] {
  return phase === "train"
    ? TRAINED
    : triedStrategies(numerics).map((tried) => ({ chunks: 1, ...tried }));
}

/** Steps of a mesh with the first strategy that fits, or the reason why none does. */
export async function firstThatFits(
  task: SearchTask,
  mesh: ReplicaMesh,
  known: Known,
): Promise<ReplicaStep[] | ThrownOut> {
  const { weights, limit } = known;
  const sliceExperts = !hasEntireExperts(mesh, known);
  const all = FITTED[task.phase].map((strategy): SearchStrategy =>
    sliceExperts ? { ...strategy, sliceExperts } : strategy
  );
  const memory = Math.max(
    ...Object.values(task.machine.devices).map(usableMemory),
  );
  let why = "";
  // Strategies differ in neither, except those of training.
  let held: HeldBytes | undefined;
  for (const strategy of all) {
    const min = task.phase === "train"
      ? minTrainingBytes(weights, mesh, strategy)
      : minWeightBytes(weights, mesh, strategy);
    if (min > limit) {
      why = `${
        task.phase === "train"
          ? "weights and optimizer state alone are"
          : "weights alone are"
      } ${sizeText(min)} a rank${sharedText(" with ", strategy)}, of ${
        sizeText(limit)
      }`;
      continue;
    }
    if (task.phase !== "train") {
      held ??= await heldBytes(task, mesh, {
        strategy,
        load: smallestLoadOf(task),
      });
      if (held && held.total > memory) {
        const load = smallestLoadText(task);
        const bytes = sizeText(held.total);
        why =
          `weights and states alone are ${bytes} a rank with ${load} each, of ${
            sizeText(limit)
          }`;
        break;
      }
    }
    const large = held && largestEstimate(task, held, limit);
    const plan = large && await largestUpTo(task, { mesh, strategy }, large);
    if (plan) return stepsOf(task, plan);
    const one = await smallestLoad(task, mesh, strategy);
    if (!("why" in one)) {
      const isEnough = task.phase === "train" || large !== undefined;
      return [
        ...stepsOf(task, one),
        ...isEnough ? [] : await largerSteps(task, one),
      ];
    }
    why = one.why;
  }
  return { mesh, why };
}

/**
 * The loads among which the largest one that fits is sought, if bytes of states are proportional to the load.
 * Undefined for objectives that the smallest load may meet best.
 */
function largestEstimate(
  task: SearchTask,
  { total, state }: HeldBytes,
  limit: number,
): LoadRange | undefined {
  if (task.objective !== "throughput") return undefined;
  const above = smallestLoadOf(task);
  const most = STATE_SHARE * above * (limit - (total - state)) / state;
  return { above, max: Math.min(maxLoadOf(task), most) };
}

/** Steps of the largest load that fits, if it is larger than that of a plan. */
export async function largerSteps(
  task: SearchTask,
  one: Replica,
): Promise<ReplicaStep[]> {
  const max = Math.min(maxLoadOf(task), loadThatFits(task, one));
  const larger = await largestUpTo(task, one, { above: one.load, max });
  return larger ? stepsOf(task, larger) : [];
}

/** `ZeRO-3 and recomputation` after the given text; empty without sharding. */
function sharedText(
  before: string,
  { zero = 0, recompute = false }: SearchStrategy,
): string {
  const words = [
    ...zero > 0 ? [`ZeRO-${zero}`] : [],
    ...recompute ? ["recomputation"] : [],
  ];
  return words.length > 0 ? before + words.join(" and ") : "";
}

/** The plan of the smallest load, or the reason why none fits. */
async function smallestLoad(
  task: SearchTask,
  mesh: ReplicaMesh,
  strategy: SearchStrategy,
): Promise<ReplicaPlan | ThrownOut> {
  const load = smallestLoadOf(task);
  const one = await compileReplica(task, mesh, { strategy, load });
  if ("why" in one) return one;
  const { bytes, limit = Infinity } = one.fullest;
  if (!fits(one)) {
    const why = `needs ${task.phase === "train" ? "at least " : ""}${
      sizeText(bytes.total)
    } a rank with ${smallestLoadText(task)} each${
      sharedText(", ", strategy)
    }, of ${sizeText(limit)}`;
    return { mesh, why };
  }
  return one;
}

function smallestLoadOf({ phase, context }: SearchTask): number {
  return phase === "prefill" ? Math.min(128, context) : 1;
}

function maxLoadOf({ phase, context }: SearchTask): number {
  return Math.min(MAX_LOAD[phase], phase === "prefill" ? context : Infinity);
}

/** Loads above one, up to another. */
interface LoadRange {
  readonly above: number;
  readonly max: number;
}

/** The plan with the largest of these loads that fits. Undefined if there is none. */
async function largestUpTo(
  task: SearchTask,
  { mesh, strategy }: Pick<Replica, "mesh" | "strategy">,
  { above, max }: LoadRange,
): Promise<ReplicaPlan | undefined> {
  for (let load = rounded(max); load > above;) {
    const plan = await compileReplica(task, mesh, { strategy, load });
    if (!("why" in plan) && fits(plan)) return plan;
    const next = "why" in plan ? load : loadThatFits(task, plan);
    load = rounded(Math.min(load - 1, next));
  }
  return undefined;
}

/** The load of a replica that fits, if its bytes except fixed ones are proportional to the load. */
function loadThatFits(
  { phase }: SearchTask,
  { load, fullest: { bytes, limit = Infinity } }: Replica,
): number {
  const fixed = bytes.weights + (phase === "train" ? bytes.state : 0);
  return load * (limit - fixed) / (bytes.total - fixed);
}

/** The load of a rank in a sentence. */
function smallestLoadText(task: SearchTask): string {
  switch (task.phase) {
    case "prefill":
      return `${smallestLoadOf(task)} tokens`;
    case "train":
      return `a sequence of ${task.context} tokens`;
    case "decode":
      return "a sequence";
  }
}

/** 1, 2, 3, 4, 6, 8, 12, …: the largest that does not exceed the value. 0 for less than 1. */
function rounded(value: number): number {
  if (!(value >= 1)) return 0;
  const power = 2 ** Math.floor(Math.log2(value));
  return value >= 1.5 * power && power > 1 ? 1.5 * power : power;
}

/** A plan with its steps. */
export interface StepsOfReplica {
  readonly of: Replica;
  readonly steps: readonly ReplicaStep[];
}

/**
 * Steps of the mesh of a plan with each other strategy that changes the plan and fits. A strategy that is known to be
 * slower and to need no less memory is omitted.
 */
export async function otherStrategies(
  task: SearchTask,
  { of, steps: base }: StepsOfReplica,
  { known: { weights }, strategies = strategiesOf(task) }: {
    readonly known: Known;
    readonly strategies?: readonly SearchStrategy[];
  },
): Promise<ReplicaStep[]> {
  const { mesh, load } = of;
  const steps: ReplicaStep[] = [];
  const compiled: Replica[] = [of];
  for (const tried of strategies) {
    if (tried.sliceExperts && mesh.tp === 1) continue;
    const strategy = { ...tried, ...given(of.strategy, ["sliceExperts"]) };
    const { deduplicate, ...others } = strategy;
    const isKnown = compiled.some((plan) =>
      isSame(strategy, plan.strategy) ||
      deduplicate && isSame(others, plan.strategy) && plan.deduplicates
    );
    if (isKnown || beatGathering(base, { strategy, task, weights })) continue;
    const plan = await compileReplica(task, mesh, { strategy, load });
    if (!("why" in plan)) compiled.push(plan);
    if ("why" in plan || !fits(plan)) continue;
    if (!isOther(plan, of)) continue;
    steps.push(...stepsOf(task, plan));
    // Smaller receive buffers leave memory for more tokens.
    if (strategy.receiveRows) steps.push(...await largerSteps(task, plan));
  }
  return steps;
}

/** Steps of a mesh with sliced experts. */
export async function stepsWithSlices(
  task: SearchTask,
  of: StepsOfReplica,
  known: Known,
): Promise<ReplicaStep[]> {
  const strategies = [{ chunks: 1, sliceExperts: true }];
  return await otherStrategies(task, of, { known, strategies });
}

/** Steps with exchanges in two levels, between hosts and within a host, if experts are on several and it fits. */
export async function stepsOverNodes(
  task: SearchTask,
  { mesh, load, strategy }: Replica,
  host: number,
): Promise<ReplicaStep[]> {
  const nodes = overNodes(mesh, host);
  if (!nodes) return [];
  const plan = await compileReplica(task, nodes, {
    strategy: {
      ...strategy.receiveRows ? BY_NEED : { chunks: 1 },
      ...given(strategy, ["zero", "recompute", "sliceExperts"]),
    },
    load,
  });
  return "why" in plan || !fits(plan) ? [] : stepsOf(task, plan);
}

/** Whether a strategy changes anything: not if one row per choice is sent anyway. */
function isOther(a: Replica, b: Replica): boolean {
  return a.ops !== b.ops || a.fullest.bytes.total !== b.fullest.bytes.total;
}

/** Steps of several loads of one plan, and of a single sequence. */
function stepsOf(task: SearchTask, plan: ReplicaPlan): ReplicaStep[] {
  const parts = task.goal === undefined ? PARTS : GOAL_PARTS;
  const loads = new Set(
    [
      ...parts.map((part) => Math.floor(plan.load * part)),
      ...task.phase === "train" ? [] : [smallestLoadOf(task)],
    ].filter((n) => n > 0 && n <= plan.load),
  );
  const single = task.phase === "decode" ||
    task.phase === "prefill" && plan.mesh.ep * plan.load >= task.context;
  const steps = [...loads, ...single ? [0] : []]
    .map((load) => stepReplica(task, plan, load));
  // Without `ep`, a single sequence is the smallest load.
  return steps.filter((a, i) =>
    i ===
      steps.findIndex((b) =>
        b.tokens === a.tokens && b.sequences === a.sequences
      )
  );
}
