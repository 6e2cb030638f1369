/** Compiles a target for a machine that need not be present, and summarizes memory fit, traffic and work. */

import { isCompiled } from "../../../compiler/compiled.ts";
import { modelAxis } from "../../../spec/axis_parts.ts";
import {
  type EncodingName,
  isFileDType,
} from "../../../spec/weights/encoding.ts";
import { partNames } from "../../../spec/weights/packed.ts";
import { DataError, ModelError, PlacementError } from "../../../spec/errors.ts";
import { GUARANTEED_LIMITS } from "../../../spec/limits.ts";
import {
  type Machine,
  machineRanks,
  placeRanks,
  processorsOf,
} from "../../../spec/machine.ts";
import { isPageAxis, WITHIN } from "../../../spec/pages.ts";
import type { Plan, PlanBuffer, PlanWeight } from "../../../spec/plan/plan.ts";
import { receiveTexts } from "../../../spec/plan/rounds.ts";
import { quantity } from "../../../spec/quantity.ts";
import { sizeText } from "../../../spec/size_text.ts";
import { sum } from "../../../spec/sum.ts";
import type { FileSystem } from "../../files.ts";
import type { PlanOptions } from "../../open.ts";
import type { Target } from "../../target.ts";
import type { ExpertLoad } from "../simulate/mod.ts";
import { assumptionText } from "./assumptions.ts";
import { compileRepresentatives, type ModelTarget } from "./compiled.ts";
import { type ExpertLimit, expertMemoryProblems } from "./expert_memory.ts";
import { layerClasses } from "./layers.ts";
import { predictedSteps, predictSteps } from "./predictions.ts";
import { EACH_ITSELF } from "./representatives.ts";
import { dividedOptions } from "./divided.ts";
import { problemsOf } from "./problems.ts";
import { summarizeRanks } from "./ranks.ts";
import type {
  PhaseCosts,
  PlanSummary,
  PredictedTimeline,
} from "../../../spec/plan_summary.ts";
import { predictCosts, predictTimelines } from "./timelines.ts";
import {
  type ModelWeights,
  summarizeModel,
  summarizeWeights,
} from "./weights.ts";

export type {
  ExchangeSummary,
  LayerClass,
  ModelSummary,
  Phase,
  PlanSummary,
  PredictedStep,
  RankBytes,
  RankClass,
} from "../../../spec/plan_summary.ts";

/** Options of a summary. */
export interface SummaryOptions {
  readonly machine?: Machine | undefined;
  /** Limits that override those of the machine. Without a machine, only these are checked. */
  readonly limits?: { readonly [limit: string]: number } | undefined;
  /** Flags that change a bound, by axis: `{ token: "--max-tokens" }`. Default: the axis of the model. */
  readonly flags?: { readonly [axis: string]: string };
  /** Expert load of predicted steps. Default: even. */
  readonly experts?: ExpertLoad | undefined;
  /** Memory of experts that the native CPU devices of the machine stream from disk. Default: all are in memory. */
  readonly expertMemory?: ExpertLimit | undefined;
  /** Lists only this rank. Default: all, with equal ones together. */
  readonly rank?: number | undefined;
}

/** Options of `summarizeTarget`. */
export interface SummarizeTargetOptions
  extends Omit<PlanOptions, "limits">, SummaryOptions {
  /** Storage dtype of the weights of a configuration. Default: that of the configuration. */
  readonly dtype?: EncodingName;
}

/** A summary and its plan. */
export interface Summarized {
  /** The complete plan, compiled on demand. */
  plan(): Promise<Plan>;
  readonly summary: PlanSummary;
  /** Whether it was read from a file. */
  readonly untrusted: boolean;
  /** The predicted timelines. Empty if nothing is predicted. */
  timelines(): Promise<readonly PredictedTimeline[]>;
  /** Bytes and FLOPs of the steps of its first program, and their rooflines if a machine is given. */
  costs(): Promise<readonly PhaseCosts[]>;
}

/**
 * Compiles a target, whatever its requirements, and summarizes it; for a decoder, by kinds of layers. Default mesh: all
 * ranks of the machine.
 */
export async function summarizeTarget(
  target: Target,
  files: FileSystem,
  options: SummarizeTargetOptions = {},
): Promise<Summarized> {
  const machine = options.expertMemory === undefined
    ? options.machine
    : streamingMachine(options.machine);
  if (target.kind === "plan") {
    const { plan } = target;
    const summary = planSummary(plan, { ...options, machine });
    return {
      plan: () => Promise.resolve(plan),
      summary,
      untrusted: !isCompiled(plan),
      timelines: () => Promise.resolve(timelinesOf(plan, summary, options)),
      costs: () => Promise.resolve(predictCosts(plan, options)),
    };
  }
  const { flags = {}, rank, experts, expertMemory, ...given } = options;
  const { limits } = options;
  const compiled = await compileRepresentatives(target, files, {
    ...given,
    machine,
  });
  const { plan, weights, notes, full } = compiled;
  const summary = planSummary(plan, {
    machine,
    limits,
    weights,
    rank,
    experts,
    expertMemory,
    flags,
    encodable: target.kind === "configuration" && given.dtype === undefined
      ? expertBits(weights)
      : undefined,
    notes: [...notes, ...boundNotes(plan, flags, given.bounds)],
  });
  return {
    plan: full,
    summary: await withStreamed(
      await withDivided(summary, plan, { target, files, options }),
      target,
      { files, options },
    ),
    untrusted: false,
    timelines: async () =>
      timelinesOf(await full(), summary, { machine, experts }),
    costs: async () => predictCosts(await full(), { machine, experts }),
  };
}

function timelinesOf(
  plan: Plan,
  summary: PlanSummary,
  { machine, experts }: Pick<SummaryOptions, "machine" | "experts">,
): readonly PredictedTimeline[] {
  return machine ? predictTimelines(plan, summary, { machine, experts }) : [];
}

/** The machine of native CPU devices with disks. Throws DataError if there is none. */
function streamingMachine(machine: Machine | undefined): Machine {
  const processors = machine && processorsOf(machine);
  const disks = processors &&
    placeRanks(processors).every(({ kind }) => processors.devices[kind]!.disk);
  if (processors && disks) return processors;
  const state = !machine
    ? "there is no machine"
    : processors
    ? `the disk of '${machine.name}' is unknown`
    : `'${machine.name}' has no native CPU device`;
  throw new DataError(
    `Cannot plan experts on disk: ${state}. Name a machine whose file has 'disk', such as one that 'devices --all --adapter native' measured`,
  );
}

/** Flags of a run that streams its experts. */
const STREAMED_FLAGS = "--adapter native --expert-memory auto";

/** A summary whose plan does not fit, with the plan that streams its experts from disk, if that fits. */
async function withStreamed(
  summary: PlanSummary,
  target: Target,
  { files, options }: {
    readonly files: FileSystem;
    readonly options: SummarizeTargetOptions;
  },
): Promise<PlanSummary> {
  const { machine, expertMemory } = options;
  const processors = machine && processorsOf(machine);
  const tooLarge = summary.ranks.some(({ headroom = 0 }) => headroom < 0);
  const kind = processors && placeRanks(processors)[0]!.kind;
  const device = kind === undefined ? undefined : processors!.devices[kind]!;
  if (!tooLarge || expertMemory !== undefined || !device?.disk) return summary;
  const { summary: streamed } = await summarizeTarget(target, files, {
    ...options,
    expertMemory: "auto",
  });
  const { ranks, problems, predicted = {} } = streamed;
  return problems.length > 0 ? summary : {
    ...summary,
    problems: summary.problems.map((problem) => ({
      ...problem,
      fix: `${STREAMED_FLAGS}, or ${problem.fix}`,
    })),
    streamed: { device: device.name ?? kind!, ranks, predicted },
  };
}

/** A summary whose plan does not fit, with the first of `dividedOptions` that does before each fix. */
async function withDivided(
  summary: PlanSummary,
  plan: Plan,
  { target, files, options }: {
    readonly target: ModelTarget;
    readonly files: FileSystem;
    readonly options: SummarizeTargetOptions;
  },
): Promise<PlanSummary> {
  const { machine, expertMemory } = options;
  const [fullest] = summary.ranks.toSorted((a, b) =>
    (a.headroom ?? 0) - (b.headroom ?? 0)
  );
  const excess = -(fullest!.headroom ?? 0);
  if (!machine || excess <= 0 || expertMemory !== undefined) return summary;
  const lacksFlag = summary.problems.some(({ larger }) => larger);
  const ways = dividedOptions(plan, machineRanks(machine), options)
    .filter(({ of }) => excess < sum(of.map((part) => fullest!.bytes[part])))
    // Another mesh is a larger change than a flag.
    .filter(({ options: { mesh } }) => mesh === undefined || lacksFlag);
  for (const { flag, options: changed } of ways) {
    try {
      const { plan, weights: { representatives: { times } } } =
        await compileRepresentatives(target, files, {
          ...options,
          ...changed,
        });
      const ranks = summarizeRanks(plan, { machine, experts: [], times });
      if (ranks.some(({ headroom = 0 }) => headroom < 0)) continue;
    } catch (error) {
      // The model has no such sharding.
      if (error instanceof PlacementError || error instanceof ModelError) {
        continue;
      }
      throw error;
    }
    return {
      ...summary,
      problems: summary.problems.map((problem) =>
        problem.kind === "memory"
          ? { ...problem, fix: `${flag}, or ${problem.fix}` }
          : problem
      ),
    };
  }
  return summary;
}

/** Summarizes a plan. `weights`: those of its model, if available. */
export function planSummary(
  plan: Plan,
  options: SummaryOptions & {
    readonly weights?: ModelWeights;
    readonly encodable?: number | undefined;
    readonly notes?: readonly string[];
  } = {},
): PlanSummary {
  const { machine, limits, weights, rank, flags = {}, notes = [] } = options;
  const { expertMemory } = options;
  checkRank(plan, rank);
  const representatives = weights?.representatives ?? EACH_ITSELF;
  const { times } = representatives;
  const experts = expertAxes(plan, weights);
  const isExperts = expertBuffers(plan, weights);
  const holding = { machine, experts, times, expertMemory };
  const ranks = summarizeRanks(plan, holding);
  const cached = ranks[0]!.expertMemory;
  const predicted = predictSteps(plan, {
    machine,
    representatives,
    experts: options.experts,
    resident: cached && cached.bytes < cached.all
      ? cached.bytes / cached.all
      : undefined,
  });
  return {
    model: weights ? summarizeModel(weights) : summarizeWeights(plan),
    mesh: Object.fromEntries(plan.mesh.map(({ name, size }) => [name, size])),
    ...machine ? { target: machine.name } : {},
    bounds: boundsOf(plan),
    ranks: rank === undefined
      ? ranks
      : summarizeRanks(plan, { ...holding, only: [rank] }),
    layers: weights ? layerClasses(plan, { ...weights, predicted }) : [],
    problems: [
      ...problemsOf(plan, ranks, {
        ...holding,
        limits,
        isExperts,
        bounds: flags,
        encodable: options.encodable,
      }),
      ...cached ? expertMemoryProblems(plan, cached) : [],
    ],
    ...predictedSteps(predicted),
    notes: [
      ...notes,
      ...receiveTexts(plan).map((text) =>
        `receive buffers have ${text}; more rows are received in rounds`
      ),
      ...activationNotes(plan),
      ...predicted.size > 0 && machine
        ? [`times assume ${assumptionText(plan, machine)}`]
        : [],
      ...machine || limits ? [] : limitNotes(plan, weights),
    ],
  };
}

/** States which activations are quantized. */
function activationNotes({ weights }: Plan): readonly string[] {
  const { length } = weights.filter(({ activations }) => activations);
  return length === 0 ? [] : [
    `activations of ${length} weights are quantized to 8 bits (q8). Compute in f32 with --activations f32`,
  ];
}

/** Bits per element of the experts' matrices that are not quantized. */
function expertBits({ params, storedAs }: ModelWeights): number | undefined {
  const param = params.find(({ expert, use }) =>
    expert !== undefined && use === "matrix"
  );
  const bits: { readonly [name: string]: number } = {
    f32: 32,
    f16: 16,
    bf16: 16,
  };
  return param && bits[storedAs(param).name];
}

function checkRank({ ranks }: Plan, rank: number | undefined): void {
  if (rank === undefined || rank < ranks) return;
  throw new DataError(
    `Cannot show rank ${rank}: the plan has ${quantity(ranks, "rank")}. ${
      ranks === 1
        ? "Leave the rank out"
        : `Give a number from 0 to ${ranks - 1}`
    }`,
  );
}

function expertAxes(
  plan: Plan,
  weights: ModelWeights | undefined,
): readonly string[] {
  const names = weights
    ? weights.params.flatMap(({ expert }) => expert ?? [])
    : plan.weights.flatMap((weight) => axesOf(weight))
      .filter((axis) => plan.axes[axis]?.experts)
      .map((axis) => modelAxis(plan, axis));
  return [...new Set(names)];
}

function axesOf({ axes, stack }: PlanWeight): readonly string[] {
  return stack === undefined ? axes : [stack, ...axes];
}

/** The buffers with weights of experts: those of the model, else those that ranks have parts of. */
function expertBuffers(
  plan: Plan,
  weights: ModelWeights | undefined,
): (buffer: PlanBuffer) => boolean {
  const names = new Set(
    weights
      ? weights.params.filter(({ expert }) => expert !== undefined)
        .flatMap(({ name }) => [name, ...partNames(name)])
      : plan.weights.filter((weight) =>
        axesOf(weight).some((axis) => plan.axes[axis]?.experts)
      ).map(({ buffer }) => buffer),
  );
  return ({ name, kind }) => kind === "weight" && names.has(name);
}

/** Bounds for a run, under the model's names: lengths of inputs and of states. */
function boundsOf(plan: Plan): { readonly [axis: string]: number } {
  const named = Object.values(plan.buffers).flatMap(({ kind, axes }) =>
    kind === "input" || kind === "state"
      ? axes.map(({ axis }) => modelAxis(plan, axis))
      : []
  );
  // The axes of paged caches do not contain the maximum sequence length.
  const paged = named.includes(WITHIN);
  return Object.fromEntries(
    Object.entries(plan.axes).flatMap(([name, { size, dynamic }]) =>
      named.includes(name) &&
          (dynamic || name === "sequence" || name === "context" ||
            paged && (name === WITHIN || isPageAxis(name))) ||
        paged && name === "context"
        ? [[name, size]]
        : []
    ),
  );
}

/** Notes about default bounds of a checkpoint's model. */
function boundNotes(
  plan: Plan,
  flags: { readonly [axis: string]: string },
  given: PlanOptions["bounds"] = {},
): string[] {
  const names = {
    token: given.maxTokens,
    sequence: given.maxSequences,
    context: given.maxContext,
  };
  const defaults = Object.entries(names).flatMap(([axis, value]) =>
    value === undefined && Object.hasOwn(flags, axis) && plan.axes[axis]
      ? [`${flags[axis]} ${plan.axes[axis]!.size}`]
      : []
  );
  return defaults.length === 0
    ? []
    : [`bounds by default: ${defaults.join(", ")}`];
}

/** Notes about requirements beyond guaranteed limits, if no device is given. */
function limitNotes(plan: Plan, weights: ModelWeights | undefined): string[] {
  // Limits are unknown for plans with other weight bytes than compiled.
  const known =
    weights?.params.every((param) =>
      isFileDType(weights.storedAs(param).name)
    ) ?? true;
  const over = Object.entries(GUARANTEED_LIMITS).flatMap(([name, allowed]) => {
    const need = plan.requiredLimits[name] ?? 0;
    if (need <= allowed) return [];
    return [
      name.startsWith("max") && name.includes("Size") && need > 1 << 20
        ? `${name} ${sizeText(need)} (${sizeText(allowed)})`
        : `${name} ${need} (${allowed})`,
    ];
  });
  return known && over.length > 0
    ? [
      `needs more than every WebGPU device has: ${
        over.join(", ")
      }. Name a machine with --target, or limits with --limits`,
    ]
    : [];
}
