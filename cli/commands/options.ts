/** Conversion of flags to options of the engine. */

import {
  given,
  loadTarget,
  type LoadTargetOptions,
  type OpenOptions,
  type PlanOptions,
  readTunings,
  type SelectDevicesOptions,
  type Target,
} from "../../engine/mod.ts";
import type { CliIo } from "../io.ts";
import type { DeviceFlags, ModelFlags, PlanFlags } from "../flags/flags.ts";
import { UsageError } from "../flags/values.ts";
import { meshSizes } from "../../spec/mesh.ts";
import { printable } from "../../spec/mod.ts";
import {
  type Strategy,
  STRATEGY_NAMES,
  strategyFlag,
} from "../../spec/strategies.ts";

/** The flags that control compilation. */
const COMPILED = {
  mesh: "--mesh",
  place: "--place",
  pages: "--pages",
  kvCacheDtype: "--kv-cache-dtype",
  activations: "--activations",
  ...Object.fromEntries(
    STRATEGY_NAMES.map((name) => [name, strategyFlag(name)]),
  ) as { [K in keyof Strategy]-?: string },
} as const;

/** The flags that set the bounds of a checkpoint's model. */
const BOUNDS = {
  maxTokens: "--max-tokens",
  maxSequences: "--max-sequences",
  maxContext: "--max-context",
} as const;

/** Returns the keys of a table. */
function keysOf<T extends object>(table: T): (keyof T)[] {
  return Object.keys(table) as (keyof T)[];
}

/**
 * Loads the target of a command line. Reports unread fields of config.json, and a context beyond the positions of the
 * model.
 */
export async function targetOf(
  io: CliIo,
  path: string,
  flags:
    & ModelFlags
    & Pick<LoadTargetOptions, "lora" | "withoutWeights">
    & Pick<PlanFlags, "maxContext">,
): Promise<Target> {
  const { family, lora, withoutWeights = false, maxContext = 0 } = flags;
  const target = await loadTarget(path, io.files, {
    family,
    lora,
    withoutWeights,
  });
  if (
    family !== undefined && (target.kind === "plan" || target.kind === "model")
  ) {
    throw new UsageError(
      `Cannot use --family with a ${target.kind}: it is for a config.json. Leave it out`,
    );
  }
  const published = target.kind === "checkpoint"
    ? target.checkpoint.published
    : target.kind === "configuration"
    ? target.configuration.published
    : undefined;
  const {
    unread = [],
    decoder: { maxPositions } = { maxPositions: Infinity },
  } = published ?? {};
  if (maxContext > maxPositions) {
    io.err(
      `--max-context ${maxContext} exceeds the ${maxPositions} positions of the model: text after them may make no sense`,
    );
  }
  if (unread.length > 0) {
    io.err(
      `config.json has ${
        unread.map((key) => `'${printable(key)}'`).join(", ")
      }, which the family does not read`,
    );
  }
  return target;
}

/** Returns the compile options and the bounds. Throws UsageError for flags that do not apply to the target. */
export function planOptions(
  target: Pick<Target, "kind">,
  flags: PlanFlags,
): PlanOptions {
  const compiled = given(flags, keysOf(COMPILED));
  const bounds = given(flags, keysOf(BOUNDS));
  const [useless] = target.kind === "plan"
    ? [
      ...keysOf(compiled).map((key) => COMPILED[key]),
      ...keysOf(bounds).map((key) => BOUNDS[key]),
    ]
    : target.kind === "model"
    ? keysOf(bounds).map((key) => BOUNDS[key])
    : [];
  if (useless !== undefined) {
    throw new UsageError(
      target.kind === "plan"
        ? `Cannot use ${useless} with a plan: a plan has its mesh and its bounds. Leave it out, or compile the model again`
        : `Cannot use ${useless} with a model file: its bounds are in the file. Leave it out`,
    );
  }
  const { mesh, ...others } = compiled;
  return {
    ...others,
    ...mesh ? { mesh: meshSizes(mesh) } : {},
    ...Object.keys(bounds).length > 0 ? { bounds } : {},
  };
}

/** Returns the options of ranks and devices. */
export function deviceOptions(
  io: CliIo,
  flags: DeviceFlags,
): SelectDevicesOptions {
  const { devices, adapter, deadline, expertMemory } = flags;
  if (devices === "shared" && Array.isArray(adapter) && adapter.length > 1) {
    throw new UsageError(
      `Cannot use --adapter ${
        adapter.join(",")
      } with shared devices: all ranks are on one. Give one number, or --devices separate`,
    );
  }
  return {
    sharing: devices,
    adapter,
    ...deadline === undefined ? {} : { deadlineMs: 1000 * deadline },
    ...expertMemory === undefined ? {} : { expertMemory },
    threads: flags.threads ?? io.threads,
    graphics: io.graphics,
    systemInfo: io.systemInfo,
    notice: (text: string) => io.err(text),
  };
}

/** Returns all options for opening a target, including stored tuning results. */
export async function openOptions(
  io: CliIo,
  target: Target,
  flags: PlanFlags & DeviceFlags,
): Promise<OpenOptions> {
  const tunings = tuningsPath(io);
  if (flags.preload && flags.expertMemory !== undefined) {
    throw new UsageError(
      "Cannot use --preload with --expert-memory: experts that do not fit in memory are read when they are used. Give one of them",
    );
  }
  return {
    ...planOptions(target, flags),
    ...deviceOptions(io, flags),
    preload: flags.preload ?? false,
    tunings: tunings === undefined
      ? {}
      : await readTunings(io.files, tunings, { notice: io.err }),
  };
}

/** Path of the stored tuning results. Undefined for a user without a home folder. */
export function tuningsPath({ files, cache }: CliIo): string | undefined {
  return cache && files.join(files.join(cache, "switchyard"), "tunings.json");
}
