/** Opens a target as a session: reads headers, compiles, verifies, opens devices, loads. */

import type { Activations } from "../spec/weights/activations.ts";
import { isGguf } from "./gguf/folder.ts";
import {
  compile,
  type CompileOptions,
  DataError,
  paramFacts,
  PlacementError,
  trace,
} from "../compiler/mod.ts";
import { isCompiled } from "../compiler/compiled.ts";
import type { Bounds, DecoderOptions } from "../models/mod.ts";
import {
  createSession,
  type Progress,
  type RankStatistics,
  type Session,
  type TensorDirectory,
  type Trace,
  type Tracer,
} from "../runtime/mod.ts";
import type { LaunchTiming } from "../runtime/device.ts";
import { createMpiCommunicator } from "../runtime/mpi/mod.ts";
import { assertLegal, type LegalPlan } from "../spec/mod.ts";
import type { FileDType } from "../spec/dtype.ts";
import { meshAxes, type MeshSizes } from "../spec/mesh.ts";
import type { Plan } from "../spec/plan/plan.ts";
import { STRATEGY_NAMES } from "../spec/strategies.ts";
import { MAX_RANKS } from "../spec/limits.ts";
import {
  chooseBounds,
  defaultBounds,
  type Need,
  pagesFor,
  withHeldStates,
} from "./bounds.ts";
import { assertCompiled, compileDocumented } from "./compiled_from.ts";
import { listWeightFiles } from "./checkpoint/checkpoint.ts";
import {
  type SavedTunings,
  tune,
  type Tuned,
  type TuneOptions,
} from "./tune/mod.ts";
import {
  type Companion,
  compileCompanions,
  openCompanions,
  type OpenedCompanion,
  withNeedsOf,
} from "./companions.ts";
import { tuningOf } from "./tune/tuning.ts";
import { selectDevices, type SelectDevicesOptions } from "./devices.ts";
import { ranksHere } from "./expert_bytes.ts";
import type { FileSystem } from "./files.ts";
import {
  allLoaded,
  checkJob,
  gatherStatistics,
  gatherTrace,
  type Texts,
  textsOf,
} from "./job.ts";
import {
  folderOf,
  isPublished,
  type Published,
  publishedOf,
  type Target,
  unusedOf,
} from "./target.ts";
import { type KeepFiles, withTensors } from "./checkpoint/tensors.ts";
import { given } from "./given.ts";
import { compiledAs } from "./checkpoint/stored_as.ts";
import { randomWeights } from "./random.ts";
import { checkTensors, storedDTypes } from "./checkpoint/weights.ts";

/** Options of `compile` that are passed on unchanged. */
const COMPILED = [
  "place",
  "limits",
  "overLimits",
  "tuning",
  ...STRATEGY_NAMES,
  "check",
  "countDropped",
  "recordSquares",
  "pages",
  "kvCacheDtype",
  "activations",
] as const satisfies readonly (keyof CompileOptions)[];

/**
 * Options of compiling a target. Default of `tuning`: that of the devices, or the compiler's if no device is opened.
 */
export interface PlanOptions
  extends Pick<CompileOptions, typeof COMPILED[number]> {
  /** Sizes of mesh axes, in order: `{ dp: 2, ep: 4 }`. Default: `{ ep: 1 }`. */
  readonly mesh?: MeshSizes;
  /** Bounds of a checkpoint's model. */
  readonly bounds?: Partial<Bounds>;
  /** Requirements of the run, if known. Missing bounds follow from them. */
  readonly need?: Need;
  /** For a checkpoint: whether routers use recorded choices. */
  readonly replay?: boolean;
  /** For a checkpoint: only these layers, for planning. */
  readonly layers?: readonly number[];
  /** For a checkpoint: only outputs after the last tokens, for `generate`. */
  readonly next?: NonNullable<DecoderOptions["next"]>;
}

/** Options of loading a target. */
export interface OpenOptions
  extends PlanOptions, SelectDevicesOptions, Pick<Loadable, "companions"> {
  /** Tunings by adapter, as saved by 'switchyard tune'; not used if ranks are processes. */
  readonly tunings?: SavedTunings;
  /** Whether to run a plan file that differs from the compiled model in it. Default: it is an error. */
  readonly allowKernels?: boolean;
  /** Source of weights: safetensors files or a checkpoint folder. Default: that of the target. */
  readonly weights?: string;
  /** Seed of random weights, if there are no files. Default: missing weights are an error. */
  readonly random?: number;
  /** Whether mapped weight files are read completely. Default: only what is used is read. */
  readonly preload?: boolean;
  readonly onProgress?: (progress: Progress) => void;
  readonly tracer?: Tracer;
  /** Whether bytes sent between ranks are counted. Runs are slower. */
  readonly statistics?: boolean;
  /** Values besides plan and weights, such as inputs, that must be equal in all processes. */
  readonly equal?: { readonly [what: string]: string | Uint8Array };
}

/** A loaded target. */
export interface Opened extends Texts {
  readonly plan: Plan;
  /** Kind of the devices, which determines bits: "cpu", or adapters with their drivers. */
  readonly device: string;
  readonly session: Session;
  /** The companions of a `Loadable`, in order. */
  readonly companions: readonly OpenedCompanion[];
  /** The rank for which this process prints and writes results: that of an MPI job, else 0. */
  readonly rank: number;
  /** The ranks in this process. */
  readonly ranks: readonly number[];
  /** Memory and traffic of every rank. All processes must call it. */
  statistics(): Promise<readonly RankStatistics[]>;
  /** The trace of every rank, on rank 0. All processes must call it. */
  trace(): Promise<Trace | undefined>;
  /** Times of the launches on the devices of this process since the last call; only with `timestamps`. */
  timings(): Promise<readonly LaunchTiming[]>;
  /** Marks this process as done after its results are written. The exit of an MPI rank without it ends the job. */
  finish(): Promise<void>;
  /** Closes the session and its devices. */
  close(): Promise<void>;
}

/** Compiles a target. A saved plan is returned unchanged. */
export async function planTarget(
  target: Target,
  files: FileSystem,
  options: PlanOptions & { readonly weights?: string } = {},
): Promise<Plan> {
  if (target.kind === "plan") return target.plan;
  return await compileTarget(
    target,
    await storedWeights(target, files, options),
    options,
  );
}

/**
 * Storage dtypes of a target's weights by source tensor, from its files or its configuration. Encodings that no kernel
 * reads are compiled as bf16.
 */
export async function storedWeights(
  target: Target,
  files: FileSystem,
  options: { readonly weights?: string } = {},
): Promise<{ readonly [tensor: string]: FileDType }> {
  if (target.kind === "configuration") {
    return compiledAs(
      target.configuration.storedAs(),
      paramFacts(trace(modelOf(target, {}))),
    );
  }
  return await withTensors(
    await weightFiles(target, files, options.weights),
    files,
    (tensors) => Promise.resolve(storedDTypes(tensors)),
  );
}

/** Loads a target onto devices. */
export async function openTarget(
  target: Target,
  files: FileSystem,
  options: OpenOptions = {},
): Promise<Opened> {
  const paths = await weightFiles(target, files, options.weights);
  const untrusted = target.kind === "plan" && !isCompiled(target.plan);
  return await withTensors(
    paths,
    files,
    (tensors, keepFiles) =>
      openPlan({
        keepFiles,
        ...given(options, ["companions"]),
        plan: async (chosen) => {
          if (untrusted && !options.allowKernels) {
            await assertCompiled(target.plan);
          }
          return await planWith(target, tensors, chosen);
        },
        tensors: (plan) =>
          Promise.resolve(
            paths.length > 0 || options.random === undefined
              ? tensors
              : randomWeights(plan, options.random),
          ),
        where: options.weights ?? folderOf(target) ??
          (options.random === undefined ? undefined : "random numbers"),
        unused: unusedOf(target),
      }, { ...options, untrusted }),
  );
}

/** Finds fast kernel variants for a target on the selected devices. */
export async function tuneTarget(
  target: Exclude<Target, { readonly kind: "plan" }>,
  files: FileSystem,
  options: OpenOptions & TuneOptions,
): Promise<Tuned & { readonly computer: string }> {
  const selected = await selectDevices(options);
  const { limits, computer } = selected;
  const paths = await weightFiles(target, files, options.weights);
  const tuned = await withTensors(
    paths,
    files,
    (tensors) =>
      tune(
        {
          compile: (tuning) =>
            planWith(target, tensors, { limits, ...options, tuning }),
        },
        selected,
        options,
      ),
  );
  return { ...tuned, computer };
}

/** A plan to be compiled, and the source of its weights. */
export interface Loadable {
  /** Compiles for the selected devices. */
  plan(options: PlanOptions): Promise<LegalPlan>;
  tensors(plan: Plan): Promise<TensorDirectory>;
  /** Keeps the files of tensors open, for experts that are read during runs. Absent: they are closed after loading. */
  readonly keepFiles?: KeepFiles;
  /** The folder or file of the weights, for messages. Undefined if there is none. */
  readonly where: string | undefined;
  /** Prefixes of unused tensors that are allowed. */
  readonly unused?: readonly string[];
  /** Plans that run on the same devices, in one process. */
  readonly companions?: readonly Companion[];
}

/** Selects devices, compiles for them, and loads. */
export async function openPlan(
  loadable: Loadable,
  options: OpenOptions,
): Promise<Opened> {
  const selected = await selectDevices(options);
  const { world } = selected;
  const chosen = {
    limits: selected.limits,
    tuning: tuningOf(selected, options),
    ...world ? { mesh: { ep: world.size } } : {},
    ...options,
  };
  const plan = await loadable.plan(chosen);
  const companions = await compileCompanions(loadable, chosen, { plan, world });
  const tensors = await loadable.tensors(plan);
  if (world) {
    await checkJob(world, plan, {
      tensors,
      kind: selected.kind,
      equal: options.equal ?? {},
    });
  }
  if (loadable.where === undefined && plan.weights.length > 0) {
    throw new DataError(
      `Cannot load weights: the model has ${plan.weights.length}, and no file is given. Give one with --weights`,
    );
  }
  const { where = "", unused = [] } = loadable;
  checkTensors(plan, tensors, { where, unused });
  const { devices: opened, slotBytes, close } = await selected.open(
    withNeedsOf(plan, companions),
  );
  const devicesOf = ({ ranks }: Plan) =>
    world
      ? opened
      : Array.from({ length: ranks }, (_, i) => opened[i % opened.length]!);
  const devices = devicesOf(plan);
  try {
    const { onProgress, tracer } = options;
    const communicator = world && await createMpiCommunicator(world, plan);
    const session = await createSession(plan, {
      devices,
      tensors,
      statistics: options.statistics ?? false,
      preload: options.preload ?? false,
      slotBytes,
      ...(onProgress ? { onProgress } : {}),
      ...(tracer ? { tracer } : {}),
      ...(communicator ? { communicator } : {}),
    });
    if (world) await allLoaded(world);
    const ranks = ranksHere(plan, world);
    const closeFiles = slotBytes && loadable.keepFiles?.();
    return {
      plan,
      device: selected.kind === "cpu" ? "cpu" : selected.computer,
      session,
      companions: await openCompanions(
        companions,
        { plan, session, ranks, tensors },
        { devicesOf, world },
      ),
      rank: world?.rank ?? 0,
      ranks,
      ...textsOf(world),
      statistics: async () => {
        const { ranks } = session.statistics();
        return world ? await gatherStatistics(world, ranks) : ranks;
      },
      trace: async () =>
        tracer &&
        (world ? await gatherTrace(world, tracer) : tracer.toTrace()),
      timings: async () =>
        (await Promise.all(
          [...new Set(devices)].map((device) => device.timings?.() ?? []),
        )).flat(),
      finish: async () => await world?.finish(),
      close: async () => {
        session.close();
        if (closeFiles) await closeFiles();
        await close();
      },
    };
  } catch (error) {
    for (const device of new Set(opened)) device.destroy();
    await close();
    throw error;
  }
}

/** The plan of a target. A saved one was verified when it was read. */
async function planWith(
  target: Target,
  tensors: TensorDirectory,
  options: PlanOptions,
): Promise<LegalPlan> {
  if (target.kind === "plan") {
    if (options.check && !hasChecks(target.plan)) {
      throw new DataError(
        "Cannot check the run: the plan was compiled without check steps. Compile it with 'switchyard plan --check'",
      );
    }
    return target.plan;
  }
  return await compileTarget(target, storedDTypes(tensors), options);
}

/** Compiles and verifies the model of a target. */
export async function compileTarget(
  target: Exclude<Target, { readonly kind: "plan" }>,
  weights: { readonly [tensor: string]: FileDType },
  options: PlanOptions,
): Promise<LegalPlan> {
  const plan = await compile(modelOf(target, options), {
    ...targetOptions(target, options),
    weights,
  });
  assertLegal(plan, { fitsSchema: true });
  return plan;
}

/** `compileTarget` for a plan that can be saved. */
export async function compileToSave(
  target: Exclude<Target, { readonly kind: "plan" }>,
  weights: { readonly [tensor: string]: FileDType },
  options: PlanOptions,
): Promise<LegalPlan> {
  return await compileDocumented(modelOf(target, options), {
    options: { ...targetOptions(target, options), weights },
  });
}

/** Compiler options of a target's plan, and the pages of its caches if the run is known. */
export function targetOptions(
  target: Target,
  options: PlanOptions,
): CompileOptions {
  return {
    activations: activationsOf(target),
    ...compileOptions(options),
    ...pagesOf(target, options),
  };
}

/**
 * Default activations: q8 for GGUF files, as in llama.cpp; f32 for other checkpoints, whose engines compute in floats.
 */
function activationsOf(target: Target): Activations {
  return target.kind === "checkpoint" &&
      target.checkpoint.weightFiles.some(isGguf)
    ? "q8"
    : "f32";
}

/** Compiler options of a plan. */
export function compileOptions(options: PlanOptions): CompileOptions {
  const mesh = options.mesh ?? { ep: 1 };
  checkRanks(mesh);
  return { mesh, ...given(options, COMPILED) };
}

function checkRanks(mesh: MeshSizes): void {
  const ranks = meshAxes(mesh).reduce((product, { size }) => product * size, 1);
  if (ranks <= MAX_RANKS) return;
  throw new PlacementError(
    `Cannot use a mesh of ${ranks} ranks: a plan has at most ${MAX_RANKS}. Make the mesh smaller`,
  );
}

/** The model of a target with the given bounds. */
export function modelOf(
  target: Exclude<Target, { readonly kind: "plan" }>,
  options: PlanOptions,
): Parameters<typeof compile>[0] {
  if (target.kind === "model") return target.model;
  return publishedOf(target).build({
    ...boundsOf(target, options),
    replay: options.replay ?? false,
    ...options.next ? { next: options.next } : {},
    layers: options.layers,
  });
}

/** The bounds of a plan of a published model. */
export function boundsOf(
  target: Published,
  { need, bounds = {}, mesh }: PlanOptions,
): Bounds {
  const max = { ...publishedOf(target).decoder, mesh };
  return need ? chooseBounds(need, bounds, max) : defaultBounds(bounds, max);
}

/** Caches are paged if the lengths of sequences are known. */
function pagesOf(
  target: Target,
  options: PlanOptions,
): Pick<CompileOptions, "pages"> {
  const { need: { lengths } = {}, pages, next } = options;
  if (!pages && !lengths || !isPublished(target)) return {};
  const bounds = { ...boundsOf(target, options), ...next };
  return { pages: withHeldStates(pages ?? pagesFor(lengths!, bounds), bounds) };
}

async function weightFiles(
  target: Target,
  files: FileSystem,
  given: string | undefined,
): Promise<readonly string[]> {
  if (given !== undefined) {
    return await files.stat(given) === "folder"
      ? await listWeightFiles(given, files)
      : [given];
  }
  return target.kind === "checkpoint" ? target.checkpoint.weightFiles : [];
}

/** Whether a plan counts choices that did not return. */
function hasChecks(plan: Plan): boolean {
  return plan.programs.some((program) =>
    Object.keys(program.outputs).some((name) => CHECK.test(name))
  );
}

/** Names of outputs that count choices that did not return. */
export const CHECK = /^check\.\d+$/;
