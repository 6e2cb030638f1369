/** Flags as options of the engine. */

import {
  type OpenOptions,
  type PlanOptions,
  readKept,
  type SelectDevicesOptions,
  type Target,
} from "../../engine/mod.ts";
import type { CliIo } from "../io.ts";
import type { DeviceFlags, PlanFlags } from "../flags.ts";
import { UsageError } from "../values.ts";

/** Where and how large a model is compiled. Throws UsageError for flags that the target has no use for. */
export function planOptions(
  target: Pick<Target, "kind">,
  flags: PlanFlags,
): PlanOptions {
  const { mesh, place, maxTokens, maxSequences, maxContext } = flags;
  const { chunks, sendOnce, numerics, dispatcher } = flags;
  const bounds = {
    ...maxTokens === undefined ? {} : { maxTokens },
    ...maxSequences === undefined ? {} : { maxSequences },
    ...maxContext === undefined ? {} : { maxContext },
  };
  const given = [
    ...mesh ? ["--mesh"] : [],
    ...place ? ["--place"] : [],
    ...chunks === undefined ? [] : ["--chunks"],
    ...sendOnce ? ["--send-once"] : [],
    ...numerics === undefined ? [] : ["--numerics"],
    ...dispatcher === undefined ? [] : ["--dispatcher"],
  ];
  const bounded = [
    ...maxTokens === undefined ? [] : ["--max-tokens"],
    ...maxSequences === undefined ? [] : ["--max-sequences"],
    ...maxContext === undefined ? [] : ["--max-context"],
  ];
  const [useless] = target.kind === "plan"
    ? [...given, ...bounded]
    : target.kind === "model"
    ? bounded
    : [];
  if (useless !== undefined) {
    throw new UsageError(
      target.kind === "plan"
        ? `Cannot use ${useless} with a plan: a plan has its mesh and its bounds. Leave it out, or compile the model again`
        : `Cannot use ${useless} with a model file: its bounds are in the file. Leave it out`,
    );
  }
  return {
    ...mesh ? { mesh } : {},
    ...place ? { place } : {},
    ...chunks === undefined ? {} : { chunks },
    ...sendOnce ? { sendOnce } : {},
    ...numerics === undefined ? {} : { numerics },
    ...dispatcher === undefined ? {} : { dispatcher },
    ...Object.keys(bounds).length > 0 ? { bounds } : {},
  };
}

/** Where ranks live and what computes. */
export function deviceOptions(
  io: CliIo,
  flags: DeviceFlags,
): SelectDevicesOptions {
  const { devices, adapter, deadline } = flags;
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
    threads: io.threads,
    graphics: io.graphics,
    places: io.places,
    notice: (text: string) => io.err(text),
  };
}

/** Everything that opening a target needs of the flags, and what tuners found. */
export async function openOptions(
  io: CliIo,
  target: Target,
  flags: PlanFlags & DeviceFlags,
): Promise<OpenOptions> {
  return {
    ...planOptions(target, flags),
    ...deviceOptions(io, flags),
    kept: await readKept(io.files, tuningsPath(io), { notice: io.err }),
  };
}

/** Where tuners keep what they found. */
export function tuningsPath({ files, cache }: CliIo): string {
  return files.join(files.join(cache, "switchyard"), "tunings.json");
}
