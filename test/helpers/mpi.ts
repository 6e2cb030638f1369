/** MPI jobs: installed launchers, and commands started with them. */

import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import {
  chmodSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  writeFileSync,
} from "node:fs";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { type MpiFamily, mpiFamily } from "../../cli/launch/mpi_launcher.ts";
import { COMMAND } from "./compiled.ts";
import { skipUnasked } from "./needs.ts";
import { ableInTurn, isInTurn } from "./seed.ts";

/** Path of the command. */
export const BIN = fileURLToPath(
  new URL("../../bin/switchyard.mjs", import.meta.url),
);

/** Timeout of a process, in milliseconds. Long enough for a busy machine. */
const HANG_MS = 1_200_000;

/** MPI implementation with its launcher. `skip`: reason to skip its tests, or false. */
export interface Launcher {
  readonly name: string;
  readonly family: MpiFamily;
  readonly command: string | undefined;
  /** Environment variable that contains the rank of a process. */
  readonly rankVariable: string;
  readonly skip: false | string;
}

/** Reason to skip tests that call MPI, or false. */
export const skipWithoutKoffi: false | string = await import("koffi").then(
  () => false,
  () => "the optional package 'koffi' is not installed",
);

/** Open MPI and MPICH. */
export const LAUNCHERS: readonly Launcher[] = [
  find("Open MPI", "openMpi", ["mpirun.openmpi", "OMPI_COMM_WORLD_RANK"]),
  find("MPICH", "mpich", ["mpirun.mpich", "PMI_RANK"]),
];

/** Reason to skip tests that need any MPI, or false. */
export const skipWithoutMpi: false | string =
  LAUNCHERS.every(({ skip }) => skip)
    ? LAUNCHERS.map(({ skip }) => skip).join("; ")
    : false;

/**
 * Returns launchers of tests that do not depend on the implementation: an installed one, in rotation, and missing ones,
 * whose tests are skipped. test/mpi/communicator.test.ts compares exchanges of both.
 */
export function launchersInTurn(): readonly Launcher[] {
  return ableInTurn(LAUNCHERS);
}

/** Returns the cases that `launcher` runs. If both MPIs are installed, cases alternate by `SEED`. */
export function alternating<T>(
  list: readonly T[],
  launcher: Pick<Launcher, "family">,
): readonly T[] {
  const able = LAUNCHERS.filter(({ skip }) => !skip);
  const at = able.findIndex(({ family }) => family === launcher.family);
  return at < 0 ? list : list.filter((_, i) => isInTurn(i + at, able.length));
}

function find(
  name: string,
  family: MpiFamily,
  [program, rankVariable]: [program: string, rankVariable: string],
): Launcher {
  const command = [program, "mpirun"].find((candidate) => {
    const { stdout } = spawnSync(candidate, ["--version"], {
      encoding: "utf8",
      timeout: HANG_MS,
    });
    return mpiFamily(stdout ?? "") === family;
  });
  const skip = skipUnasked("mpi") ||
    (command ? skipWithoutKoffi : `${name} is not installed`);
  return { name, family, command, rankVariable, skip };
}

/** Exit code and output of a process. */
export interface Ended {
  readonly code: number | null;
  readonly out: string;
  readonly err: string;
}

/** A running process. */
export interface Started {
  readonly child: ChildProcess;
  readonly ended: Promise<Ended>;
  /** Resolves at the first standard output. */
  readonly printed: Promise<void>;
}

export interface StartOptions {
  readonly cwd?: string;
  /** Additional environment variables. */
  readonly env?: { readonly [name: string]: string };
  /** Program and first arguments that run the command, which is their last argument, in a shell. */
  readonly via?: readonly string[];
}

/**
 * Starts `switchyard`. PATH has a folder in `scratch` first, whose `mpirun` runs `command`; without a command, only
 * this folder.
 */
export function startWith(
  { command }: Pick<Launcher, "command">,
  scratch: string,
  argv: readonly string[],
  { cwd, env = {}, via }: StartOptions = {},
): Started {
  const folder = path.join(scratch, "bin");
  mkdirSync(folder, { recursive: true });
  if (command) {
    const script = path.join(folder, "mpirun");
    writeFileSync(
      script,
      `#!/bin/sh\necho "$@" >>"${folder}/arguments"\nexec ${command} "$@"\n`,
    );
    chmodSync(script, 0o755);
  }
  const PATH = command ? `${folder}:${process.env["PATH"]}` : folder;
  const line = [process.execPath, COMMAND, ...argv];
  const [program, ...rest] = via ? [...via, line.join(" ")] : line;
  return start(program!, rest, {
    ...cwd === undefined ? {} : { cwd },
    env: { ...process.env, ...env, PATH },
  });
}

/**
 * Returns standard error without messages of MPI and the note on few cores. Open MPI's messages about a lost peer have
 * any shape and may interleave. If any occur, returns only our messages and the first lines of stack traces.
 */
export function withoutMpi(text: string): string {
  text = text.replace(/^\d+ ranks share \d+ cores?: .*\n/m, "")
    // A slow start prints its progress.
    .replace(
      /^(?:Compiling kernels|Loading weights|Reading files): .*\n/gm,
      "",
    );
  if (!/\bMPI\b|mca_btl_|^\[\S+:\d+\]/m.test(text)) return text;
  const ours =
    /(?:rank \d+ on \S+(?::| in step) |Cannot )[^\n]*\n|^(?:\s+at |\w*Error\b).*\n/gm;
  return (text.match(ours) ?? []).join("");
}

/** Returns the folder of the last job started with `scratch`. */
export function jobOf(scratch: string): string {
  const text = readFileSync(path.join(scratch, "bin", "arguments"), "utf8");
  return [...text.matchAll(/ --job (\S+)/g)].at(-1)![1]!;
}

/** Starts a program. */
export function start(
  program: string,
  argv: readonly string[],
  options: { readonly cwd?: string; readonly env?: NodeJS.ProcessEnv } = {},
): Started {
  const child = spawn(program, argv, {
    ...options,
    stdio: ["ignore", "pipe", "pipe"],
  });
  const timer = setTimeout(() => child.kill("SIGTERM"), HANG_MS);
  let out = "", err = "";
  const printed = new Promise<void>((resolve) => {
    child.stdout.on("data", (text) => {
      out += text;
      resolve();
    });
    child.on("close", () => resolve());
  });
  child.stderr.on("data", (text) => err += text);
  const ended = new Promise<Ended>((resolve) => {
    child.on("close", (code) => {
      clearTimeout(timer);
      resolve({ code, out, err });
    });
  });
  return { child, ended, printed };
}

/** Returns the processes of a job that are still running after up to ten seconds. */
export async function processesLeft(job: string): Promise<number[]> {
  let left = processesWith(job);
  for (let wait = 10; left.length > 0 && wait < 10_000; wait *= 2) {
    await sleep(wait);
    left = processesWith(job);
  }
  return left;
}

/** Returns the ids of processes with a command-line argument and an environment setting. */
export function processesWith(argument: string, setting = ""): number[] {
  return readdirSync("/proc").filter((name) => /^\d+$/.test(name)).filter(
    (name) => {
      try {
        const read = (file: string): string[] =>
          readFileSync(`/proc/${name}/${file}`, "utf8").split("\0");
        return read("cmdline").includes(argument) &&
          (setting === "" || read("environ").includes(setting));
      } catch {
        return false;
      }
    },
  ).map(Number);
}
