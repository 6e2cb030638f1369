/** Machine descriptions that `--target` accepts: names of files in `machines/`, and other files. */

import { hostname } from "node:os";
import { openMachineMeter } from "../engine/mod.ts";
import { DataError } from "../spec/errors.ts";
import { type Machine, parseMachine } from "../spec/mod.ts";
import { deviceOptions } from "./commands/options.ts";
import type { CliIo } from "./io.ts";
import { packageFile } from "./package_file.ts";

/** The name of this machine. It is measured with the given number of ranks, as in `devices --all`. */
const THIS = "this";

/** Number of repetitions for measuring this machine. It is kept small so that planning stays fast. */
const REPETITIONS = 3;

/** Options for measuring this machine. */
export interface FindMachineOptions {
  /** Number of ranks on this machine. Default: 1. */
  readonly ranks?: number;
  /** Measures this machine. Default: as `devices --all`. */
  readonly measure?: (io: CliIo, ranks: number) => Promise<Machine>;
}

/**
 * Reads a machine by name or from a file, or measures this one with the given number of ranks. Otherwise throws a
 * DataError that lists the names.
 */
export async function findMachine(
  io: CliIo,
  target: string,
  { ranks = 1, measure = measureThis }: FindMachineOptions = {},
): Promise<Machine> {
  const { files } = io;
  if (target === THIS) return await measure(io, ranks);
  const read = async (file: string) =>
    parseMachine(await files.readText(file), file);
  const machines = packageFile("machines");
  if (/^[a-z0-9-]+$/.test(target)) {
    const file = files.join(machines, `${target}.json`);
    if (await files.stat(file) !== undefined) {
      return await read(file);
    }
  }
  if (await files.stat(target) === undefined) {
    const names = (await files.list(machines))
      .filter((name) => name.endsWith(".json"))
      .map((name) => name.replace(/\.json$/, "")).sort();
    throw new DataError(
      `Cannot find machine '${target}': it is no file, and no name of ${
        names.join(", ")
      }. Give one of them, a machine file, or '${THIS}' to measure this machine`,
    );
  }
  return await read(target);
}

/** Measures the devices that a run would use. */
async function measureThis(io: CliIo, ranks: number): Promise<Machine> {
  const { measure, close } = await openMachineMeter({
    ...deviceOptions(io, { devices: "shared", adapter: "auto" }),
    ranks,
    repetitions: REPETITIONS,
    host: hostname(),
    now: io.now,
  });
  try {
    return await measure();
  } finally {
    await close();
  }
}
