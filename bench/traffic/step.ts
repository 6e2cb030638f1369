/** Counts the traffic of every launch of a step of a configuration on a described GPU. Exchanges are not counted. */

import { nodeFiles } from "../../cli/files.ts";
import { loadTarget } from "../../engine/mod.ts";
import {
  type LaunchSetup,
  sampledGroups,
  typicalLoad,
} from "../../engine/planner/simulate/launch_work.ts";
import {
  type CountedLaunch,
  launchContext,
  openLaunchMeter,
} from "../../engine/planner/simulate/launches.ts";
import type { Workload } from "../../engine/planner/simulate/mod.ts";
import { compileRepresentatives } from "../../engine/planner/summary/compiled.ts";
import { summarizeRanks } from "../../engine/planner/summary/ranks.ts";
import { DataError } from "../../spec/errors.ts";
import type { Kernel } from "../../spec/kernel/tree.ts";
import { subgroupTiles } from "../../spec/kernel/wgsl/matrices.ts";
import { layersOf } from "../../spec/plan/layers.ts";
import { executes } from "../../spec/plan/members.ts";
import type { NumericsClass } from "../../spec/numerics.ts";
import { sum } from "../../spec/sum.ts";
import { boundOf, type Limit } from "./bound.ts";
import { countGroup, meanCounts } from "./count.ts";
import type { Gpu } from "./gpus.ts";

/** Traffic of a launch. */
export interface LaunchTraffic {
  readonly kernel: string;
  readonly workgroups: number;
  /** Lanes of a workgroup. */
  readonly lanes: number;
  /**
   * Distinct bytes touched: all, those of weights and states, and those in device memory when the launch begins or
   * ends.
   */
  readonly bytes: number;
  readonly streamed: number;
  readonly device: number;
  readonly multiplyAdds: number;
  /** Seconds of multiply-adds at the full rate of their class: f32, or matrix units. */
  readonly arithmetic: number;
  /** Whether matrix units multiply. */
  readonly matrices: boolean;
  /** Share of the fetched sectors of weights and states that is used. */
  readonly efficiency: number;
  /** Passes over workgroup memory relative to those without bank conflicts. Absent: no request to it. */
  readonly bankPasses?: number;
  /** Share of the issued lanes that are inactive. */
  readonly divergence: number;
  /** Waits of a warp for device memory, or for L2 if there are none. */
  readonly waits: number;
  /** Bytes from device memory in flight. */
  readonly inFlight: number;
  /** Share of the bandwidth while the kernel runs. */
  readonly share: number;
  readonly by: Limit | "multiply-adds";
  /** Including launch overhead. */
  readonly seconds: number;
}

/** The launches of equal layers, or of everything outside layers. */
export interface LayerTraffic {
  readonly name: string;
  /** Number of equal layers. */
  readonly times: number;
  readonly launches: readonly LaunchTraffic[];
}

/** Traffic of a step on rank 0. */
export interface StepTraffic {
  readonly layers: readonly LayerTraffic[];
  readonly seconds: number;
  readonly launches: number;
  readonly bytes: number;
  /** Seconds of multiply-adds at the full rates of their classes. */
  readonly arithmetic: number;
  /** Seconds of launches whose operands have 16 bits, and of their multiply-adds at the rate of matrix units. */
  readonly matrices: { readonly seconds: number; readonly arithmetic: number };
  /** Seconds of the bytes in device memory at full bandwidth: weights, states, and values that no cache can keep. */
  readonly floor: number;
  /** Memory of the rank in bytes, and whether the GPU has as much. */
  readonly memory: number;
  readonly fits: boolean;
}

/** Options of `countStep`. */
export interface CountStepOptions {
  /** A config.json. */
  readonly config: string;
  readonly gpu: Gpu;
  readonly mesh: { readonly [axis: string]: number };
  readonly workload: Required<Pick<Workload, "tokens" | "sequences" | "past">>;
  /** Iterations of an innermost loop whose loads the driver keeps in flight. */
  readonly unroll: number;
  /** Number of best next tokens that the device selects. Default: 1. */
  readonly candidates?: number;
  /** Default: exact. `fast` has 16-bit operands. */
  readonly numerics?: NumericsClass | undefined;
}

/** Bounds of the plan beyond the step: tokens of a prefill step, and free positions of the KV cache. */
const PREFILL = 512, ROOM = 8;

/** Counts a step. Throws DataError if the target has no configuration, or if the workload exceeds the plan. */
export async function countStep(
  { config, gpu, mesh, workload, unroll, candidates = 1, numerics }:
    CountStepOptions,
): Promise<StepTraffic> {
  const files = nodeFiles();
  const target = await loadTarget(config, files, { withoutWeights: true });
  if (target.kind === "plan") {
    throw new DataError(
      `Cannot count '${config}': it is a plan. Give a config.json`,
    );
  }
  const { tokens, sequences, past } = workload;
  const { plan, weights: { representatives } } = await compileRepresentatives(
    target,
    files,
    {
      machine: gpu.machine,
      mesh,
      ...numerics ? { numerics } : {},
      next: { candidates },
      bounds: {
        maxTokens: Math.max(tokens, PREFILL),
        maxSequences: sequences,
        maxContext: past + Math.ceil(tokens / sequences) + ROOM,
      },
    },
  );
  const context = launchContext(plan, workload);
  const meter = openLaunchMeter(context);
  const { names, numbers, of } = layersOf(plan, context.program);
  const launches = names.map((): LaunchTraffic[] => []);
  const known = new Map<CountedLaunch, LaunchTraffic>();
  for (const [i, step] of context.program.steps.entries()) {
    if (step.op !== "launch") continue;
    if (!executes(plan.mesh, 0, step)) continue;
    const counted = meter.launch(step, { rank: 0, fullness: "max" });
    if (counted === undefined) continue;
    const persistent = (binding: string) =>
      isPersistent(plan.buffers[step.bindings[binding]!]!.kind);
    const traffic = known.get(counted) ?? trafficOf(counted, {
      kernel: plan.kernels[step.kernel]!.tree,
      persistent,
      gpu,
      unroll,
    });
    known.set(counted, traffic);
    launches[of[i]!]!.push(traffic);
  }
  const layers = mergeEqual(names.map((name, i) => ({
    name,
    times: numbers[i] === undefined ? 1 : representatives.of(numbers[i]).length,
    launches: launches[i]!,
  })));
  const total = (of: (launch: LaunchTraffic) => number) =>
    sum(layers.map(({ times, launches }) => times * sum(launches.map(of))));
  const bytes = total(({ bytes }) => bytes);
  const [rank] = summarizeRanks(plan, {
    machine: gpu.machine,
    times: representatives.times,
    experts: [],
    only: [0],
  });
  return {
    layers,
    seconds: total(({ seconds }) => seconds),
    launches: total(() => 1),
    bytes,
    arithmetic: total(({ arithmetic }) => arithmetic),
    matrices: {
      seconds: total(({ matrices, seconds }) => matrices ? seconds : 0),
      arithmetic: total(({ matrices, arithmetic }) =>
        matrices ? arithmetic : 0
      ),
    },
    floor: total(({ device }) => device) / gpu.bandwidth,
    memory: rank!.bytes.total,
    fits: (rank!.headroom ?? 0) >= 0,
  };
}

/** Whether a buffer is read in every step: caches cannot keep all of these from step to step. */
function isPersistent(kind: string): boolean {
  return kind === "weight" || kind === "state";
}

function trafficOf(
  { work, setup, bytes, weights, states, buffers }: CountedLaunch,
  { kernel, persistent, gpu, unroll }: {
    readonly kernel: Kernel;
    readonly persistent: (binding: string) => boolean;
    readonly gpu: Gpu;
    readonly unroll: number;
  },
): LaunchTraffic {
  const inDevice = buffers.flatMap(({ read, stored }, i) => {
    const { name } = kernel.bindings[i]!;
    return persistent(name) || read + stored > gpu.cache
      ? [{ name, read, stored }]
      : [];
  });
  const cold = (binding: string) =>
    inDevice.some(({ name }) => name === binding);
  const counts = countSampled(kernel, setup, {
    cold,
    persistent,
    unroll,
    matrices: gpu.subgroup,
  });
  const { workgroups, lanes, multiplyAdds } = work;
  const streamed = weights + states;
  const distinct = sum(inDevice.map(({ read }) => read));
  const inMatrices = subgroupTiles(kernel, gpu.subgroup);
  const bound = boundOf(gpu, counts, {
    workgroups,
    lanes,
    words: inMatrices === undefined
      ? sum(kernel.shared.map(({ length }) => length))
      : inMatrices.bytes / 4,
    cold,
    ...distinct > 0 ? { distinct } : {},
  });
  const rate = work.matrices ? gpu.matrix.rate : gpu.multiplyAdds;
  const arithmetic = multiplyAdds / rate;
  const seconds = Math.max(bound.seconds, arithmetic);
  const { shared, waits, ahead, active, instructions } = counts;
  return {
    kernel: kernel.name,
    workgroups,
    lanes,
    bytes,
    streamed,
    device: distinct + sum(inDevice.map(({ stored }) => stored)),
    multiplyAdds,
    arithmetic,
    matrices: work.matrices,
    efficiency: bound.efficiency,
    ...shared.conflictFree > 0
      ? { bankPasses: shared.passes / shared.conflictFree }
      : {},
    divergence: 1 - active / instructions,
    waits: waits.device + ahead.waits.device || waits.l2 + ahead.waits.l2,
    inFlight: bound.inFlight,
    share: bytes / gpu.bandwidth / seconds,
    by: arithmetic > bound.seconds ? "multiply-adds" : bound.by,
    seconds: seconds + gpu.launch,
  };
}

function countSampled(
  kernel: Kernel,
  setup: LaunchSetup,
  options: {
    readonly cold: (binding: string) => boolean;
    readonly persistent: (binding: string) => boolean;
    readonly unroll: number;
    readonly matrices: number;
  },
) {
  const typical = typicalLoad(kernel, setup);
  const load = (binding: string, index: number) =>
    options.persistent(binding) ? storedWord(index) : typical(binding, index);
  return meanCounts(
    sampledGroups(kernel, setup).map(({ group, share }) => ({
      counts: countGroup(kernel, { ...options, group, load }),
      share,
    })),
  );
}

/** A made-up word of a weight. As in almost all words of published weights, no FP8 element in it is subnormal. */
function storedWord(index: number): number {
  return (Math.imul(index + 1, 0x9e3779b1) | 0x40404040) >>> 0;
}

/** Joins layers with equal launches; the first names them. */
function mergeEqual(layers: readonly LayerTraffic[]): LayerTraffic[] {
  const merged = new Map<string, LayerTraffic>();
  for (const layer of layers) {
    const key = JSON.stringify(layer.launches);
    const { name, times } = merged.get(key) ?? { name: layer.name, times: 0 };
    merged.set(key, {
      name,
      times: times + layer.times,
      launches: layer.launches,
    });
  }
  return [...merged.values()];
}
