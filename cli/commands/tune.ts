/** `switchyard tune`: find the fastest kernel variants of a target on an adapter, and store them for later runs. */

import { keepTuning, tuneTarget } from "../../engine/mod.ts";
import type { DeviceFlags, PlanFlags } from "../flags/flags.ts";
import type { CliIo } from "../io.ts";
import { locate } from "../located.ts";
import { MachineError } from "../../spec/errors.ts";
import { UsageError } from "../flags/values.ts";
import { openOptions, targetOf, tuningsPath } from "./options.ts";

/** Flags of `tune`. */
export interface TuneFlags extends PlanFlags, DeviceFlags {
  readonly weights?: string;
  /** Seconds. */
  readonly budget?: number;
  readonly json?: boolean;
}

/** Tunes the kernels of a target. */
export async function tuneCommand(
  base: CliIo,
  name: string,
  flags: TuneFlags,
): Promise<number> {
  const { io, model } = await locate(base, name, flags);
  const target = await targetOf(io, model, flags);
  if (target.kind === "plan") {
    throw new UsageError(
      "Cannot tune a plan: its kernels are chosen. Give the model that it was compiled from",
    );
  }
  if (flags.devices === "mpi") {
    throw new UsageError(
      "Cannot tune with --devices mpi: a tuner works on one adapter. Leave --devices out",
    );
  }
  const { files, cache } = io;
  const file = tuningsPath(io);
  if (cache === undefined || file === undefined) {
    throw new MachineError(
      "Cannot keep tunings: this user has no home. Name a folder in the environment variable XDG_CACHE_HOME",
    );
  }
  const { weights, budget = 60 } = flags;
  const { tunings: _, ...options } = await openOptions(io, target, flags);
  const { computer, ...tuned } = await tuneTarget(target, io.files, {
    ...options,
    ...weights === undefined ? {} : { weights },
    budget: budget * 1000,
    now: io.now,
    onTried: (kernel, candidate, speed) => {
      if (!flags.json) {
        io.err(`${kernel}: ${candidate}: ${speed.toFixed(2)} times as fast`);
      }
    },
  });
  await files.makeFolder(files.join(cache, "switchyard"));
  await keepTuning(files, file, { computer, tuning: tuned.tuning });
  if (flags.json) {
    await io.out(`${JSON.stringify({ computer, file, ...tuned }, null, 2)}\n`);
    return 0;
  }
  await io.out([
    `${computer}: ${tuned.tried} candidates`,
    ...Object.entries(tuned.speed).map(([kernel, speed]) =>
      `  ${kernel}: ${
        speed > 1 ? `${speed.toFixed(2)} times as fast` : "as it was"
      }`
    ),
    ...tuned.complete
      ? []
      : [`not all were tried within ${budget} s; --budget gives more`],
    `kept in ${file}`,
    "",
  ].join("\n"));
  return 0;
}
