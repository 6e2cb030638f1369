/** The machines that `--target` knows by name: files of `machines/`, beside which one may have one's own. */

import { hostname } from "node:os";
import { openMachineMeter } from "../engine/mod.ts";
import { DataError } from "../spec/errors.ts";
import { type Machine, parseMachine } from "../spec/mod.ts";
import { deviceOptions } from "./commands/options.ts";
import type { CliIo } from "./io.ts";
import { packageFile } from "./places.ts";

/** Names this machine: it is measured with so many ranks, as `devices --all` does. */
const THIS = "this";

/** Times that everything is measured of this machine: a plan is not worth a minute of it. */
const REPETITIONS = 3;

/** How this machine is measured. */
export interface FindMachineOptions {
  /** Default: 1. */
  readonly ranks?: number;
  /** Default: as `devices --all` does. */
  readonly measure?: (io: CliIo, ranks: number) => Promise<Machine>;
}

/**
 * Read the machine of a name, or of a file, or measure this one with so many ranks. Throws DataError that lists the names
 * where it is neither.
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

/** Measure the devices that a run would use. */
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
