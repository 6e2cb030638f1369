/** Machine descriptions that `--target` accepts: names of files in `machines/`, and other files. */

import { hostname } from "node:os";
import {
  type FileSystem,
  type MeasureMachineOptions,
  openMachineMeter,
} from "../engine/mod.ts";
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
  /** The model that is planned: the rate of this machine's disk is that of its largest file of weights. */
  readonly model?: string;
  /** Measures this machine. Default: as `devices --all`. */
  readonly measure?: (
    io: CliIo,
    options: Pick<MeasureMachineOptions, "file"> & { readonly ranks: number },
  ) => Promise<Machine>;
}

/** An open file of weights. */
interface WeightsFile {
  readonly file: NonNullable<MeasureMachineOptions["file"]>;
  close(): Promise<void>;
}

/**
 * Reads a machine by name or from a file, or measures this one with the given number of ranks. Otherwise throws a
 * DataError that lists the names.
 */
export async function findMachine(
  io: CliIo,
  target: string,
  { ranks = 1, model, measure = measureThis }: FindMachineOptions = {},
): Promise<Machine> {
  const { files } = io;
  if (target === THIS) {
    const weights = model === undefined
      ? undefined
      : await largestWeights(files, model);
    try {
      return await measure(io, { ranks, file: weights?.file });
    } finally {
      await weights?.close();
    }
  }
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

/** Opens the largest file of a model's weights. Undefined without files that the system reads by descriptor. */
async function largestWeights(
  files: FileSystem,
  model: string,
): Promise<WeightsFile | undefined> {
  const paths = await files.stat(model) === "folder"
    ? (await files.list(model)).map((name) => files.join(model, name))
    : [model];
  let largest: WeightsFile | undefined;
  for (const name of paths) {
    if (!/\.(safetensors|gguf)$/.test(name)) continue;
    const opened = await files.open(name);
    const { descriptor, size: bytes } = opened;
    if (descriptor !== undefined && bytes > (largest?.file.bytes ?? 0)) {
      await largest?.close();
      const close = () => opened.close();
      largest = { file: { name, descriptor, bytes }, close };
    } else await opened.close();
  }
  return largest;
}

/** Measures the devices that a run would use. */
async function measureThis(
  io: CliIo,
  options: Pick<MeasureMachineOptions, "file" | "ranks">,
): Promise<Machine> {
  const { measure, close } = await openMachineMeter({
    ...deviceOptions(io, { devices: "shared", adapter: "auto" }),
    ...options,
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
