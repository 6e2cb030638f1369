/** Real MPI jobs: which launchers this machine has, and commands started with them. */

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
import { type MpiFamily, mpiFamily } from "../../cli/mpi_launcher.ts";
import { COMMAND } from "./compiled.ts";
import { skipUnasked } from "./needs.ts";
import { ableInTurn, isInTurn } from "./seed.ts";

/** The command, from its source. */
export const BIN = fileURLToPath(
  new URL("../../bin/switchyard.mjs", import.meta.url),
);

/** After this a process is thought to hang, on a machine that is busy with other work too. */
const HANG_MS = 1_200_000;

/** A family of MPI, its launcher, and why its tests are skipped here, or false. */
export interface Launcher {
  readonly name: string;
  readonly family: MpiFamily;
  readonly command: string | undefined;
  /** The variable in which the launcher tells a process its rank. */
  readonly rankVariable: string;
  readonly skip: false | string;
}

/** Why MPI cannot be called here, whichever is installed, or false. */
export const skipWithoutKoffi: false | string = await import("koffi").then(
  () => false,
  () => "the optional package 'koffi' is not installed",
);

/** Both families. */
export const LAUNCHERS: readonly Launcher[] = [
  find("Open MPI", "openMpi", ["mpirun.openmpi", "OMPI_COMM_WORLD_RANK"]),
  find("MPICH", "mpich", ["mpirun.mpich", "PMI_RANK"]),
];

/** Why tests that need an MPI, whichever it is, are skipped here, or false. */
export const skipWithoutMpi: false | string =
  LAUNCHERS.every(({ skip }) => skip)
    ? LAUNCHERS.map(({ skip }) => skip).join("; ")
    : false;

/**
 * Launchers of tests that do not depend on the MPI: an installed one, in rotation, and missing ones, whose tests are
 * skipped. test/mpi/communicator.test.ts compares the exchanges of both.
 */
export function launchersInTurn(): readonly Launcher[] {
  return ableInTurn(LAUNCHERS);
}

/** Cases of a list that an MPI runs: if both are installed, they alternate, by `SEED`. */
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
  [own, rankVariable]: [own: string, rankVariable: string],
): Launcher {
  const command = [own, "mpirun"].find((candidate) => {
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

/** What a process left. */
export interface Ended {
  readonly code: number | null;
  readonly out: string;
  readonly err: string;
}

/** A process that is in flight. */
export interface Started {
  readonly child: ChildProcess;
  readonly ended: Promise<Ended>;
  /** Resolves at the first text on standard output. */
  readonly printed: Promise<void>;
}

/** How a command is started. */
export interface StartOptions {
  readonly cwd?: string;
  /** More variables. */
  readonly env?: { readonly [name: string]: string };
  /** A program and its first arguments, which takes the command as its last one and runs it with a shell. */
  readonly via?: readonly string[];
}

/** Start `switchyard`, compiled, with a folder in which `mpirun` is that of a family, or with no other folder on the path. */
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
 * What a launched program printed on standard error, without the note on few cores, and without what Open MPI says about a lost peer: lines and paragraphs of
 * any shape, whose parts may stand between each other. Where Open MPI said something, what is left are our messages,
 * wherever in a line they begin, and lines that begin as a stack trace does.
 */
export function withoutMpi(text: string): string {
  text = text.replace(/^\d+ ranks share \d+ cores?: .*\n/m, "");
  if (!/\bMPI\b|mca_btl_|^\[\S+:\d+\]/m.test(text)) return text;
  const ours =
    /(?:rank \d+ on \S+(?::| in step) |Cannot )[^\n]*\n|^(?:\s+at |\w*Error\b).*\n/gm;
  return (text.match(ours) ?? []).join("");
}

/** The folder of the last job that was started with this scratch folder. */
export function jobOf(scratch: string): string {
  const text = readFileSync(path.join(scratch, "bin", "arguments"), "utf8");
  return [...text.matchAll(/ --job (\S+)/g)].at(-1)![1]!;
}

/** Start a program. */
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

/** The processes of a job that have not ended some time after it; a killed one may take a while. */
export async function processesLeft(job: string): Promise<number[]> {
  let left = processesWith(job);
  for (let wait = 10; left.length > 0 && wait < 10_000; wait *= 2) {
    await sleep(wait);
    left = processesWith(job);
  }
  return left;
}

/** The processes whose command line has a text and whose environment has a setting. */
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
