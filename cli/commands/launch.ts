/** `switchyard launch`: start ranks as MPI processes with the mpirun on the path, and see how they end. */

import { spawn } from "node:child_process";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { requireKoffi } from "../../engine/mod.ts";
import { MachineError } from "../../spec/mod.ts";
import { type CliIo, OutputClosed } from "../io.ts";
import {
  launcherArguments,
  LauncherText,
  type MpiFamily,
  mpiFamily,
} from "../mpi_launcher.ts";
import { finishLine, UsageError } from "../values.ts";

/** Flags of `launch`. */
export interface LaunchFlags {
  readonly n: number;
  readonly hosts?: string;
  readonly json?: boolean;
}

/** Commands that have ranks. */
const COMMANDS = ["run", "generate"];

/** MPICH's launcher reports failures on standard output, line by line; the last line so far may be its first. */
const MPICH_FAILURE = /\n?={60,}(\n=\s+BAD TERMINATION|\n?$)/;

/** How long a job may take to end by itself after a rank failed, or after a signal. */
const GRACE_MS = 5000;

/** Run a command as ranks; returns the exit code of the rank that failed, or 0. */
export async function launchCommand(
  io: CliIo,
  args: readonly string[],
  flags: LaunchFlags,
): Promise<number> {
  const [command, ...rest] = args;
  checkCommand(command!, rest);
  await requireKoffi();
  const family = await findLauncher();
  // Exit codes of launchers prove nothing: rank 0 says itself that it got to the end.
  const mark = crypto.randomUUID();
  const launcher = launcherArguments(family, {
    ranks: flags.n,
    root: process.getuid?.() === 0,
    ...flags.hosts === undefined ? {} : { hosts: flags.hosts },
  });
  const bin = fileURLToPath(
    new URL("../../bin/switchyard.mjs", import.meta.url),
  );
  const ranks = [
    ...[command!, "--devices", "mpi", "--finish-mark", mark],
    ...flags.json ? ["--json"] : [],
    ...rest,
  ];
  const ended = await runJob(io, {
    argv: [...launcher, process.execPath, bin, ...ranks],
    family,
    mark,
  });
  if (ended.signal !== undefined) return 128 + ended.signal;
  if (ended.code === 0 && ended.finished) return 0;
  if (ended.text.ranksSpoke && [1, 2, 3].includes(ended.code)) {
    return ended.code;
  }
  throw new MachineError(
    `Cannot finish: ${
      ended.text.cause() ??
        `the ranks ended without a result (exit code ${ended.code} of mpirun)`
    }. Start the command again`,
  );
}

function checkCommand(command: string, rest: readonly string[]): void {
  if (!COMMANDS.includes(command)) {
    throw new UsageError(
      `Cannot launch '${command}': it has no ranks. Give 'run' or 'generate' behind --`,
    );
  }
  const at = rest.findIndex((arg) => /^--devices(=|$)/.test(arg));
  const devices = at < 0 ? "mpi" : rest[at]!.split("=")[1] ?? rest[at + 1];
  if (devices !== "mpi") {
    throw new UsageError(
      `Cannot launch ranks with --devices ${devices}: they are processes. Leave it out`,
    );
  }
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
    `Cannot launch ranks: the 'mpirun' on the path is of no known MPI (${
      version.split("\n")[0]
    }). Install Open MPI or MPICH`,
  );
}

/** A job to run. */
interface Job {
  readonly argv: readonly string[];
  readonly family: MpiFamily;
  readonly mark: string;
}

/** How a job ended. */
interface EndedJob {
  readonly code: number;
  /** Rank 0 said that it got to the end. */
  readonly finished: boolean;
  /** The signal that this process was told to end with. */
  readonly signal: number | undefined;
  readonly text: LauncherText;
}

async function runJob(io: CliIo, job: Job): Promise<EndedJob> {
  // A group of its own, so that all of it can be ended.
  const child = spawn("mpirun", job.argv, {
    detached: true,
    stdio: ["ignore", "pipe", "pipe"],
  });
  const kill = (signal: NodeJS.Signals): void => {
    try {
      process.kill(-child.pid!, signal);
    } catch {
      // It is gone already.
    }
  };
  let timer: NodeJS.Timeout | undefined;
  const end = (): void => {
    timer ??= setTimeout(() => kill("SIGKILL"), GRACE_MS);
  };
  let signal: number | undefined;
  const forward = (_: NodeJS.Signals, number: number): void => {
    signal = number;
    kill("SIGTERM");
    end();
  };
  const signals = ["SIGINT", "SIGTERM", "SIGHUP"] as const;
  for (const name of signals) process.on(name, forward);
  const text = new LauncherText(job.family, (line) => {
    // Somebody else will say why.
    if (signal === undefined) io.err(line);
  }, end);
  child.stderr.setEncoding("utf8").on("data", (chunk) => text.push(chunk));
  let closed: OutputClosed | undefined;
  let held = "";
  let printed = Promise.resolve();
  child.stdout.setEncoding("utf8").on("data", (chunk: string) => {
    held += chunk;
    const ready = held.slice(0, outputEnd(held, finishLine(job.mark)));
    held = held.slice(ready.length);
    if (held.includes(finishLine(job.mark))) end();
    if (ready === "") return;
    printed = printed.then(() => io.out(ready)).catch((error) => {
      closed ??= error as OutputClosed;
      kill("SIGTERM");
      end();
    });
  });
  const code = await new Promise<number>((resolve, reject) => {
    child.on("error", reject);
    child.on("close", (code) => resolve(code ?? 1));
  });
  clearTimeout(timer);
  for (const name of signals) process.off(name, forward);
  // What ranks left behind, if the launcher was killed.
  kill("SIGKILL");
  const finished = held.includes(finishLine(job.mark));
  const last = held.slice(0, held.indexOf(finishLine(job.mark)));
  if (!finished) text.push(`${held}\n`);
  text.end();
  await printed;
  if (finished && last !== "") await io.out(last);
  if (closed) throw closed;
  return { code, finished, signal, text };
}

/** Where the output of ranks ends: at the finish line or what may be its beginning, or at a failure. */
function outputEnd(text: string, finish: string): number {
  const at = text.lastIndexOf(finish[0]!);
  const tail = at < 0 ? "" : text.slice(at);
  const finishing = tail !== "" &&
    (tail.startsWith(finish) || finish.startsWith(tail));
  const failure = text.search(MPICH_FAILURE);
  return Math.min(
    finishing ? at : text.length,
    failure < 0 ? text.length : failure,
  );
}
