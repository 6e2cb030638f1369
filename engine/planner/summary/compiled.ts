/** Compiles a target with representative layers, for a machine that need not be present. */

import {
  compileGraph,
  type HeldBuffer,
  heldBuffers,
  paramFacts,
  trace,
} from "../../../compiler/mod.ts";
import { cachedIn } from "../../../spec/bounded_cache.ts";
import type { EncodingName } from "../../../spec/weights/encoding.ts";
import {
  type Machine,
  machineRanks,
  placeRanks,
} from "../../../spec/machine.ts";
import { meshAxes, stageAxis } from "../../../spec/mesh.ts";
import { layerOf } from "../../../spec/plan/layers.ts";
import type { Plan } from "../../../spec/plan/plan.ts";
import { stageRanges, stagesText } from "../../../spec/stages.ts";
import type { PublishedModel } from "../../../models/mod.ts";
import type { FileSystem } from "../../files.ts";
import {
  boundsOf,
  compileToSave,
  modelOf,
  type PlanOptions,
  storedWeights,
  targetOptions,
} from "../../open.ts";
import { compiledAs } from "../../checkpoint/stored_as.ts";
import type { Target } from "../../target.ts";
import { TUNING } from "../../tune/tuning.ts";
import { machineLimits } from "./problems.ts";
import {
  EACH_ITSELF,
  representativeLayers,
  type Representatives,
} from "./representatives.ts";
import type { ModelWeights } from "./weights.ts";

/** A target with a model. */
export type ModelTarget = Exclude<Target, { readonly kind: "plan" }>;

/** Options of compiling a target for a machine. */
export interface CompileRepresentativesOptions
  extends Omit<PlanOptions, "limits"> {
  readonly machine?: Machine | undefined;
  /** Limits that override those of the machine. */
  readonly limits?: PlanOptions["limits"] | undefined;
  /** Storage dtype of the weights of a configuration. Default: that of the configuration. */
  readonly dtype?: EncodingName | undefined;
}

/** A plan of representative layers. */
export interface CompiledRepresentatives {
  readonly plan: Plan;
  readonly weights: ModelWeights;
  /** Notes about the model. */
  readonly notes: readonly string[];
  /** The plan of all layers, compiled on demand. */
  full(): Promise<Plan>;
}

/** Compiles a target, whatever its requirements. Default mesh: all ranks of the machine. */
export async function compileRepresentatives(
  target: ModelTarget,
  files: FileSystem,
  options: CompileRepresentativesOptions,
): Promise<CompiledRepresentatives> {
  const { traced, stored, declared, weights, how, compile } =
    await compileInputs(target, files, options);
  const plan = await compileGraph(traced, compile);
  const full = () =>
    declared
      ? compiledAs(declared, paramFacts(trace(modelOf(target, how))))
      : stored;
  const configuration = target.kind === "configuration"
    ? target.configuration
    : undefined;
  return {
    plan,
    weights,
    notes: [...configuration?.notes ?? [], ...declared?.notes ?? []],
    full: () => compileToSave(target, full(), how),
  };
}

/**
 * The weights of `compileRepresentatives`, and the buffers of weights and states with their bytes on every rank.
 * Creates no kernels.
 */
export async function heldRepresentatives(
  target: ModelTarget,
  files: FileSystem,
  options: CompileRepresentativesOptions,
): Promise<{ readonly weights: ModelWeights; readonly held: HeldBuffer[] }> {
  const { traced, weights, compile } = await compileInputs(
    target,
    files,
    options,
  );
  return { weights, held: heldBuffers(traced, compile) };
}

/** The traced model of representative layers, its weights, and options with and without those of the target. */
async function compileInputs(
  target: ModelTarget,
  files: FileSystem,
  { machine, dtype, limits, ...given }: CompileRepresentativesOptions,
) {
  const { stages, ...built } = await buildRepresentatives(target, files, {
    ...given,
    dtype,
  });
  const mesh = given.mesh ?? (machine && meshOf(machine, built.weights.params));
  const how: PlanOptions = {
    ...given,
    ...mesh ? { mesh } : {},
    ...forMachine(machine, { limits, tuning: given.tuning }),
  };
  const compile = {
    ...targetOptions(target, { ...how, ...stages }),
    weights: built.stored,
  };
  return { ...built, how, compile };
}

/** The weights of a target, by representative layers; compiles nothing. */
export async function representativeWeights(
  target: ModelTarget,
  files: FileSystem,
  options: Pick<CompileRepresentativesOptions, "dtype">,
): Promise<ModelWeights> {
  return (await buildRepresentatives(target, files, options)).weights;
}

/** The representative layers as a traced model, and the storage and compile dtypes of its weights. */
async function buildRepresentatives(
  target: ModelTarget,
  files: FileSystem,
  { dtype, ...given }: Omit<
    CompileRepresentativesOptions,
    "machine" | "limits"
  >,
) {
  const { representatives, stagesOf } = representativesOf(target, given);
  const built = representatives === EACH_ITSELF
    ? {}
    : { layers: representatives.layers };
  const traced = tracedOnce(target, { ...given, ...built });
  const params = paramFacts(traced);
  const declared = target.kind === "configuration"
    ? target.configuration.storedAs(dtype)
    : undefined;
  const stored = declared
    ? compiledAs(declared, params)
    : await storedWeights(target, files);
  const weights: ModelWeights = {
    params,
    representatives,
    storedAs: (param) =>
      declared?.of(param) ?? { name: stored[param.tensor] ?? param.dtype },
  };
  const stages = stagesOf(representatives.layers);
  return { traced, stored, declared, weights, stages };
}

type Traced = ReturnType<typeof trace>;

/** Traced models of each target, by all that they depend on: many meshes have the same. */
const traces = new WeakMap<ModelTarget, Map<string, Traced>>();

/** Maximum number of these models of a target. */
const MAX_TRACES = 64;

/** A traced model; one for all plans with equal bounds and layers. */
function tracedOnce(target: ModelTarget, options: PlanOptions): Traced {
  const known = traces.get(target) ?? new Map<string, Traced>();
  traces.set(target, known);
  const { replay, next, layers } = options;
  const bounds = target.kind === "model" ? [] : boundsOf(target, options);
  return cachedIn(known, JSON.stringify([bounds, replay, next, layers]), {
    max: MAX_TRACES,
    create: () => trace(modelOf(target, options)),
  });
}

/** Compile options for a machine, without its limits. Given limits and tuning override those of the machine. */
export function forMachine(
  machine: Machine | undefined,
  { limits, tuning }: {
    readonly limits?: PlanOptions["limits"] | undefined;
    readonly tuning?: PlanOptions["tuning"] | undefined;
  },
): Pick<PlanOptions, "limits" | "tuning" | "overLimits"> {
  const device = machine?.devices[placeRanks(machine)[0]!.kind];
  const chosen = tuning ?? (device && TUNING[device.computer ?? "gpu"]);
  return {
    ...chosen ? { tuning: chosen } : {},
    limits: { ...machine && machineLimits(machine), ...limits },
    overLimits: true,
  };
}

/** Representative layers, and their pipeline stages. */
export interface StagedRepresentatives {
  readonly representatives: Representatives;
  /** The stage of a layer; 0 without stages. */
  stageOf(layer: number): number;
  /** The stages of these layers as compile options. Empty without stages. */
  stagesOf(layers: readonly number[]): Pick<PlanOptions, "stages">;
}

/** Representative layers of a target. Every layer represents itself if the target is not a decoder. */
export function representativesOf(
  target: ModelTarget,
  options: Pick<PlanOptions, "mesh" | "stages"> = {},
): StagedRepresentatives {
  const onOneStage = { stageOf: () => 0, stagesOf: () => ({}) };
  if (target.kind === "model") {
    return { representatives: EACH_ITSELF, ...onOneStage };
  }
  const { published } = target.kind === "checkpoint"
    ? target.checkpoint
    : target.configuration;
  const { decoder } = published;
  const representatives = representativeLayers(decoder);
  const mesh = meshAxes(options.mesh ?? {});
  const count = stageAxis(mesh)?.size ?? 1;
  if (count === 1) return { representatives, ...onOneStage };
  const ranges = stageRanges(
    count,
    options.stages === "cost"
      ? layerCosts(published, representatives)
      : new Array<number>(decoder.layers).fill(1),
    options.stages,
  );
  const stageOf = (layer: number) =>
    ranges.findIndex(([first, last]) => first <= layer && layer <= last);
  const staged = representativeLayers(decoder, stageOf);
  const rangesOf = (layers: readonly number[]) =>
    ranges.map((_, stage) =>
      layers.flatMap((layer, i) => stageOf(layer) === stage ? [i] : [])
    );
  const stagesOf = (layers: readonly number[]) => ({
    stages: stagesText(
      rangesOf(layers).map((all) => [all[0]!, all.at(-1)!]),
    ),
  });
  // Layers that cannot be placed are compiled, and rejected, as they are.
  return rangesOf(staged.layers).some(({ length }) => length === 0)
    ? { representatives: EACH_ITSELF, ...onOneStage }
    : { representatives: staged, stageOf, stagesOf };
}

/** Multiply-adds per token of each layer, that of the last with the vocabulary. */
function layerCosts(
  published: PublishedModel,
  { layers: built, of }: Representatives,
): number[] {
  const costs = new Array<number>(published.decoder.layers).fill(0);
  const bounds = { maxTokens: 1, maxSequences: 1, maxContext: 1 };
  const graph = trace(published.build({ ...bounds, layers: built }));
  for (const { name, use, active } of paramFacts(graph)) {
    if (use !== "matrix") continue;
    const layer = layerOf(name) ?? costs.length - 1;
    for (const equal of of(layer)) costs[equal]! += active;
  }
  return costs;
}

/** All ranks of a machine, but at most the number of experts. */
function meshOf(
  machine: Machine,
  params: ModelWeights["params"],
): PlanOptions["mesh"] {
  const max = Math.max(
    1,
    ...params.map(({ expert, matrix }) => expert ? matrix.count : 1),
  );
  return { ep: Math.min(machineRanks(machine), max) };
}
