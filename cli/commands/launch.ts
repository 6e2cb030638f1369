/** `switchyard launch`: start ranks as MPI processes with the mpirun on the path, and report their end. */

import { spawn } from "node:child_process";
import process from "node:process";
import { DEADLINE_MS, requireKoffi } from "../../engine/mod.ts";
import { MachineError } from "../../spec/mod.ts";
import { type Host, hostsFor, parseHosts } from "../launch/hosts_file.ts";
import type { CliIo } from "../io.ts";
import { ENDING, jobFolder, runJob } from "../launch/mpi_job.ts";
import {
  launcherArguments,
  type MpiFamily,
  mpiFamily,
} from "../launch/mpi_launcher.ts";
import { packageFile } from "../package_file.ts";
import { UsageError } from "../flags/values.ts";

/** Flags of `launch`. */
export interface LaunchFlags {
  readonly n: number;
  readonly hosts?: string;
  readonly json?: boolean;
}

/** The messages of commands that stop by themselves when the job is asked to stop. */
const STOPS: { readonly [command: string]: string } = {
  serve: ENDING,
  train: "Stopping after this step; interrupt again to stop immediately",
};

/** The commands that can run on several ranks. */
const COMMANDS = ["run", "generate", "serve", "train", "devices"];

/** Runs a command on several ranks. Returns the exit code of the failed rank, or 0. */
export async function launchCommand(
  io: CliIo,
  args: readonly string[],
  flags: LaunchFlags,
): Promise<number> {
  const [command, ...rest] = args;
  checkCommand(command!, rest);
  await requireKoffi();
  const hosts = await readHosts(io, flags);
  const family = await findLauncher();
  const adapter = valueOf(rest, "--adapter");
  const onCpu = adapter === undefined || !/^\d/.test(adapter);
  if (!hosts && onCpu && flags.n > io.threads) {
    io.err(oversubscribed(flags.n, io.threads));
  }
  const folder = jobFolder();
  const launcher = launcherArguments(family, {
    ranks: flags.n,
    root: process.getuid?.() === 0,
    ...hosts ? { hosts } : {},
  });
  const ranks = [
    // The exit code of a launcher is unreliable. Rank 0 reports the end itself.
    command!,
    ...valueOf(rest, "--devices") === undefined ? ["--devices", "mpi"] : [],
    "--job",
    folder,
    ...flags.json ? ["--json"] : [],
    ...rest,
  ];
  const ended = await runJob(io, {
    argv: [
      ...launcher,
      "sh",
      packageFile("bin/rank.sh"),
      folder,
      process.execPath,
      packageFile("bin/switchyard.mjs"),
      ...ranks,
    ],
    family,
    folder,
    ...Object.hasOwn(STOPS, command!) ? { stops: STOPS[command!]! } : {},
    deadline: Number(valueOf(rest, "--deadline")) || DEADLINE_MS / 1000,
  });
  if (ended.signal !== undefined) return 128 + ended.signal;
  // Ranks that were asked to stop have saved a training, which may be incomplete.
  const code = command === "train" && ended.asked && !ended.complete
    ? 128 + ended.asked
    : 0;
  // The launcher and the ranks may print messages after a requested end.
  if (ended.late) return code;
  if (ended.failure) {
    io.err(ended.failure.text);
    return ended.failure.code;
  }
  if (ended.code === 0 && ended.finished) return code;
  throw new MachineError(
    `Cannot finish: ${
      ended.cause ??
        `the ranks ended without a result (exit code ${ended.code} of mpirun)`
    }. Start the command again`,
  );
}

/** States why more ranks than cores are slow. */
function oversubscribed(ranks: number, cores: number): string {
  return `${ranks} ranks share ${cores} ${
    cores === 1 ? "core" : "cores"
  }: each step waits for ranks that have no core. Launch at most ${cores}, or run all ranks in one process, without 'launch': results have the same bits`;
}

function checkCommand(command: string, rest: readonly string[]): void {
  if (!COMMANDS.includes(command)) {
    throw new UsageError(
      `Cannot launch '${command}': it has no ranks. Give 'run', 'generate', 'serve', 'train' or 'devices' after --`,
    );
  }
  if (command === "devices" && !rest.includes("--all")) {
    throw new UsageError(
      "Cannot launch 'devices' without --all: the list of adapters needs no ranks. Add --all to measure them",
    );
  }
  const devices = valueOf(rest, "--devices") ?? "mpi";
  if (devices !== "mpi") {
    throw new UsageError(
      `Cannot launch ranks with --devices ${devices}: they are processes. Leave it out`,
    );
  }
}

/** Returns the value of a flag in the arguments of the ranks. */
function valueOf(args: readonly string[], flag: string): string | undefined {
  const at = args.findIndex((arg) =>
    arg === flag || arg.startsWith(`${flag}=`)
  );
  return at < 0 ? undefined : args[at]!.split("=")[1] ?? args[at + 1];
}

async function readHosts(
  io: CliIo,
  { n, hosts: file }: LaunchFlags,
): Promise<Host[] | undefined> {
  if (file === undefined) return undefined;
  return hostsFor(parseHosts(await io.files.readText(file), file), n, file);
}

async function findLauncher(): Promise<MpiFamily> {
  const version = await new Promise<string | undefined>((resolve) => {
    const child = spawn("mpirun", ["--version"], {
      stdio: ["ignore", "pipe", "pipe"],
    });
    let text = "";
    child.stdout.on("data", (chunk) => text += chunk);
    child.stderr.on("data", (chunk) => text += chunk);
    child.on("error", () => resolve(undefined));
    child.on("close", () => resolve(text));
  });
  if (version === undefined) {
    throw new MachineError(
      "Cannot launch ranks: there is no 'mpirun' on the path. Install Open MPI or MPICH, such as the Debian package 'openmpi-bin' or 'mpich'",
    );
  }
  const family = mpiFamily(version);
  if (family) return family;
  throw new MachineError(
    `Cannot launch ranks: the 'mpirun' on the path belongs to an unknown MPI (${
      version.split("\n")[0]
    }). Install Open MPI or MPICH`,
  );
}
