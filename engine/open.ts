/** From a target to a session: read headers, compile, verify, open devices, load. */

import {
  compile,
  type CompileOptions,
  DataError,
  paramFacts,
  PlacementError,
  trace,
} from "../compiler/mod.ts";
import { isCompiled } from "../compiler/compiled.ts";
import type { Bounds, DecoderOptions, PublishedModel } from "../models/mod.ts";
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
import type { MeshSizes } from "../spec/mesh.ts";
import type { Plan } from "../spec/plan/plan.ts";
import { STRATEGY_NAMES } from "../spec/strategies.ts";
import { MAX_RANKS } from "../spec/limits.ts";
import {
  chooseBounds,
  choosePages,
  defaultBounds,
  type Need,
} from "./bounds.ts";
import { assertCompiled, compileDocumented } from "./compiled_from.ts";
import { listWeightFiles } from "./checkpoint.ts";
import {
  type SavedTunings,
  tune,
  type Tuned,
  type TuneOptions,
} from "./tune/mod.ts";
import { tuningOf } from "./tuning.ts";
import { selectDevices, type SelectDevicesOptions } from "./devices.ts";
import type { FileSystem } from "./files.ts";
import {
  allLoaded,
  checkJob,
  gatherPatiently,
  gatherStatistics,
  gatherTrace,
} from "./job.ts";
import type { Target } from "./target.ts";
import { withTensors } from "./tensors.ts";
import { given } from "./given.ts";
import { compiledAs } from "./stored_as.ts";
import { randomWeights } from "./random.ts";
import { checkTensors, storedDTypes } from "./weights.ts";

/** Options of `compile` that a target is compiled with as they are. */
const COMPILED = [
  "place",
  "limits",
  "overLimits",
  "tuning",
  ...STRATEGY_NAMES,
  "check",
  "countDropped",
  "pages",
  "kvCacheDtype",
  "activations",
] as const satisfies readonly (keyof CompileOptions)[];

/** How a target is compiled; `tuning` is by default that for the devices, or the compiler's where no device is opened. */
export interface PlanOptions
  extends Pick<CompileOptions, typeof COMPILED[number]> {
  /** Sizes of mesh axes, in order: `{ dp: 2, ep: 4 }`. Default: `{ ep: 1 }`. */
  readonly mesh?: MeshSizes;
  /** Bounds of a checkpoint's model, as far as they are given. */
  readonly bounds?: Partial<Bounds>;
  /** What will be run, where that is known; bounds that are not given follow from it. */
  readonly need?: Need;
  /** Of a checkpoint: routers do not choose, but are given what was recorded. */
  readonly replay?: boolean;
  /** Of a checkpoint: only these layers of it, to plan it by them. */
  readonly layers?: readonly number[];
  /** Of a checkpoint: only what follows the last tokens, as `generate` needs it. */
  readonly next?: NonNullable<DecoderOptions["next"]>;
}

/** How a target is loaded. */
export interface OpenOptions extends PlanOptions, SelectDevicesOptions {
  /** Tunings by adapter, as 'switchyard tune' saves them; not used where ranks are processes. */
  readonly tunings?: SavedTunings;
  /** Run a plan that was read and is not what the model in it compiles to. Default: refused with an error. */
  readonly allowKernels?: boolean;
  /** Where weights come from: safetensors files or a checkpoint folder. Default: the target's own. */
  readonly weights?: string;
  /** Where no files have weights, draw them from this seed. Default: it is refused. */
  readonly random?: number;
  readonly onProgress?: (progress: Progress) => void;
  readonly tracer?: Tracer;
  /** Count bytes sent between ranks; runs are slower. */
  readonly statistics?: boolean;
  /** What ranks that are processes have in common besides the plan and the weights, such as inputs. */
  readonly equal?: { readonly [what: string]: string | Uint8Array };
}

/** A loaded target. */
export interface Opened {
  readonly plan: Plan;
  readonly session: Session;
  /** The rank whose part this process has in printing and writing results: that of an MPI job, else 0. */
  readonly rank: number;
  /** The ranks that live in this process. */
  readonly ranks: readonly number[];
  /** A text of every process, in the order of ranks, everywhere; `what` for is for messages. Ranks that are processes must all ask. */
  gatherTexts(text: string, what: string): Promise<readonly string[]>;
  /** Memory and traffic of every rank. Ranks that are processes must all ask. */
  statistics(): Promise<readonly RankStatistics[]>;
  /** What was traced on every rank, on rank 0. Ranks that are processes must all ask. */
  trace(): Promise<Trace | undefined>;
  /** When launches ran on the devices of this process, since that was last asked; only with `timestamps`. */
  timings(): Promise<readonly LaunchTiming[]>;
  /** Say that this process is done, once its results are written. A rank of an MPI job that ends without it ends the job. */
  finish(): Promise<void>;
  /** Close the session and its devices. */
  close(): Promise<void>;
}

/** Compile a target; a saved plan is itself. */
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
 * What the weights of a target are stored as, by source tensor: as its files say, or its configuration. What no kernel
 * reads as it is stored is compiled as bf16.
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

/** Load a target onto devices. */
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
    (tensors) =>
      openPlan({
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

/** Find fast variants of a target's kernels on the devices that options choose. */
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

/** A plan that is still to be made, and where its weights come from. */
export interface Loadable {
  /** Compile for the devices that were chosen. */
  plan(options: PlanOptions): Promise<LegalPlan>;
  tensors(plan: Plan): Promise<TensorDirectory>;
  /** The folder or file of the weights, for messages; undefined where there is none. */
  readonly where: string | undefined;
  /** Starts of the names of tensors that may be there besides. */
  readonly unused?: readonly string[];
}

/** Choose devices, compile for them, and load. */
export async function openPlan(
  loadable: Loadable,
  options: OpenOptions,
): Promise<Opened> {
  const selected = await selectDevices(options);
  const { world } = selected;
  const plan = await loadable.plan({
    limits: selected.limits,
    tuning: tuningOf(selected, options.tunings),
    ...world ? { mesh: { ep: world.size } } : {},
    ...options,
  });
  const tensors = await loadable.tensors(plan);
  if (world) {
    const { kind } = selected;
    await checkJob(world, plan, {
      tensors,
      kind,
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
  const { devices, close } = await selected.open(plan);
  try {
    const { onProgress, tracer } = options;
    const communicator = world && await createMpiCommunicator(world, plan);
    const session = await createSession(plan, {
      devices,
      tensors,
      statistics: options.statistics ?? false,
      ...(onProgress ? { onProgress } : {}),
      ...(tracer ? { tracer } : {}),
      ...(communicator ? { communicator } : {}),
    });
    if (world) await allLoaded(world);
    return {
      plan,
      session,
      rank: world?.rank ?? 0,
      ranks: world
        ? [world.rank]
        : Array.from({ length: plan.ranks }, (_, rank) => rank),
      gatherTexts: async (text, what) =>
        world ? await gatherPatiently(world, text, what) : [text],
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
      finish: async () => {
        await world?.finish();
      },
      close: async () => {
        session.close();
        await close();
      },
    };
  } catch (error) {
    for (const device of new Set(devices)) device.destroy();
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

/** Compile and verify the model of a target. */
export async function compileTarget(
  target: Exclude<Target, { readonly kind: "plan" }>,
  weights: { readonly [tensor: string]: FileDType },
  options: PlanOptions,
): Promise<LegalPlan> {
  const plan = await compile(modelOf(target, options), {
    ...targetOptions(target, options),
    weights,
  });
  assertLegal(plan);
  return plan;
}

/** As `compileTarget`, to a plan that can be saved. */
export async function compileToSave(
  target: Exclude<Target, { readonly kind: "plan" }>,
  weights: { readonly [tensor: string]: FileDType },
  options: PlanOptions,
): Promise<LegalPlan> {
  return await compileDocumented(modelOf(target, options), {
    options: { ...targetOptions(target, options), weights },
  });
}

/** Options of a target's plan as the compiler takes them, and the pages of its caches where it is known what will be run. */
export function targetOptions(
  target: Target,
  options: PlanOptions,
): CompileOptions {
  return { ...compileOptions(options), ...pagesOf(target, options) };
}

/** Options of a plan as the compiler takes them. */
export function compileOptions(options: PlanOptions): CompileOptions {
  const mesh = options.mesh ?? { ep: 1 };
  checkRanks(mesh);
  return { mesh, ...given(options, COMPILED) };
}

function checkRanks(mesh: MeshSizes): void {
  const ranks = Object.values(mesh).reduce(
    (product, size) => product * size,
    1,
  );
  if (ranks <= MAX_RANKS) return;
  throw new PlacementError(
    `Cannot use a mesh of ${ranks} ranks: a plan has at most ${MAX_RANKS}. Make the mesh smaller`,
  );
}

/** The model of a target, with the bounds that options give. */
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

function boundsOf(
  target: Published,
  { need, bounds = {} }: PlanOptions,
): Bounds {
  const { maxPositions } = publishedOf(target).decoder;
  return need
    ? chooseBounds(need, bounds, maxPositions)
    : defaultBounds(bounds, maxPositions);
}

/** Caches are in pages where it is known how long sequences become. */
function pagesOf(
  target: Target,
  { need, pages, ...options }: PlanOptions,
): Pick<CompileOptions, "pages"> {
  if (pages || !need?.lengths || !isPublished(target)) return {};
  const { lengths } = need;
  const bounds = boundsOf(target, { need, ...options });
  return { pages: (groupSize) => choosePages(lengths, bounds, groupSize) };
}

type Published = Extract<
  Target,
  { readonly kind: "checkpoint" | "configuration" }
>;

function isPublished(target: Target): target is Published {
  return target.kind === "checkpoint" || target.kind === "configuration";
}

function publishedOf(
  target: Published,
): PublishedModel {
  return target.kind === "checkpoint"
    ? target.checkpoint.published
    : target.configuration.published;
}

function folderOf(target: Target): string | undefined {
  return target.kind === "checkpoint" ? target.checkpoint.folder : undefined;
}

function unusedOf(target: Target): readonly string[] {
  return target.kind === "checkpoint" ? target.checkpoint.published.unused : [];
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
export function hasChecks(plan: Plan): boolean {
  return plan.programs.some((program) =>
    Object.keys(program.outputs).some((name) => CHECK.test(name))
  );
}

/** Names of outputs that count choices that did not return. */
export const CHECK = /^check\.\d+$/;
