/** Differences between MPI launchers: their flags, and their messages after a rank failed. */

import { existsSync, realpathSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import type { Host } from "./hosts_file.ts";
import { FIRST, parseRankLine, type RankLine } from "./rank_lines.ts";

/** The MPI implementation of an mpirun. */
export type MpiFamily = "openMpi" | "mpich";

/** Returns the implementation from the text of `mpirun --version`. */
export function mpiFamily(version: string): MpiFamily | undefined {
  if (/Open MPI|OpenRTE|PRRTE/i.test(version)) return "openMpi";
  return /HYDRA|MPICH|Intel/i.test(version) ? "mpich" : undefined;
}

/**
 * Returns the program to start for the `mpirun` on the path. The launcher of MPICH searches for its other programs
 * beside the path by which it was called, and waits forever if that is a link in another folder.
 */
export function launcherProgram(
  family: MpiFamily,
  searched: string = process.env["PATH"] ?? "",
): string {
  if (family !== "mpich") return "mpirun";
  const found = searched.split(path.delimiter)
    .map((folder) => path.join(folder, "mpirun"))
    .find((file) => existsSync(file));
  return found === undefined ? "mpirun" : realpathSync(found);
}

/** The hosts of a job's ranks. */
export interface LauncherOptions {
  readonly ranks: number;
  readonly root: boolean;
  /** Hosts of the ranks. Default: this machine. */
  readonly hosts?: readonly Host[];
}

/** Returns the arguments of mpirun before the program. */
export function launcherArguments(
  family: MpiFamily,
  { ranks, root, hosts }: LauncherOptions,
): string[] {
  const list = hosts?.map(({ name, slots }) => `${name}:${slots}`).join();
  if (family === "mpich") {
    return [...list === undefined ? [] : ["-hosts", list], "-n", String(ranks)];
  }
  return [
    ...root ? ["--allow-run-as-root"] : [],
    // More ranks than cores are slow but correct. A rank has threads and must not be bound to one core.
    "--oversubscribe",
    "--bind-to",
    "none",
    // A single host needs no network. Without one, Open MPI would print a warning.
    ...list === undefined ? ["--mca", "btl", "^tcp"] : ["--host", list],
    "-n",
    String(ranks),
  ];
}

/** Lines about a failed rank from MPICH's launcher and library. */
const MPICH_LINE =
  /^=|^Abort\(\d+\)|^application called MPI_Abort|^YOUR APPLICATION TERMINATED|^This typically refers to|^Please see the FAQ|^\[(mpiexec|proxy:)/;

/** Lines of Open MPI outside of its blocks. */
const OPEN_MPI_LINE =
  /^(prterun|mpirun)[: ]|^\[[^\]]+:\d+\] (\*\*\* |.*(help message|MCA parameter))|^\d+ more process(es)? (has|have) sent help/;

/**
 * Message of the event library in Open MPI's launcher about a socket that closes when a rank ends. It has no meaning.
 */
const OPEN_MPI_NOISE = /^\[warn\] Epoll /;

/** The lines around a block of Open MPI's launcher. */
const RULE = /^-{50,}$/;

/** Texts that appear only after a rank failed. */
const FAILURE =
  /exited on signal|non-zero (status|exit code)|MPI_ABORT|calling "?abort|exiting improperly|BAD TERMINATION|MPI_Abort|MPI_ERRORS_ARE_FATAL|unexpectedly/;

/** Receivers of the parts of a job's standard error. */
export interface LauncherReaders {
  /** Receives a line that a rank printed. */
  say(line: string): void;
  /** Receives a report from a rank to `launch`. */
  reported(line: RankLine): void;
  /** Called when the launcher reports a failed rank. */
  failed(): void;
}

/** Separates the lines of ranks on standard error from the lines of the launcher. */
export class LauncherText {
  readonly #family: MpiFamily;
  readonly #readers: LauncherReaders;
  readonly #launcher: string[] = [];
  #block: string[] | undefined;
  #rest = "";
  #begun = "";

  constructor(family: MpiFamily, readers: LauncherReaders) {
    this.#family = family;
    this.#readers = readers;
  }

  /** Adds text. */
  push(text: string): void {
    // Open MPI ends some of its texts with a NUL.
    const lines = (this.#rest + text).replaceAll("\0", "").split(/\r?\n/);
    this.#rest = lines.pop()!;
    for (const line of lines) this.#line(line);
  }

  /** Ends the text. */
  end(): void {
    if (this.#rest + this.#begun !== "") this.#line(this.#rest);
    this.#rest = "";
    if (this.#block) this.#endBlock(this.#block);
  }

  /** Returns the launcher's message about a failure, for use if no rank reported one. It may name the wrong rank. */
  cause(): string | undefined {
    const text = this.#launcher.join(" ").replace(/\s+/g, " ").trim();
    return text === "" ? undefined : `mpirun says '${text}'`;
  }

  #line(text: string): void {
    // A rank's line may appear in the middle of a line from the launcher or a library.
    const at = text.indexOf(FIRST);
    const reported = at < 0 ? undefined : parseRankLine(text.slice(at));
    if (reported) {
      this.#begun += text.slice(0, at);
      return this.#readers.reported(reported);
    }
    const line = this.#begun + text;
    this.#begun = "";
    if (this.#family === "openMpi" && RULE.test(line)) {
      if (this.#block) this.#endBlock(this.#block);
      else this.#block = [];
      return;
    }
    if (this.#family === "openMpi" && OPEN_MPI_NOISE.test(line)) return;
    if (this.#block) {
      this.#block.push(line);
      return;
    }
    const pattern = this.#family === "mpich" ? MPICH_LINE : OPEN_MPI_LINE;
    if (pattern.test(line)) this.#ofLauncher([line]);
    else this.#ofRank(line);
  }

  // Other messages, such as a remark about the network, are passed to the user.
  #endBlock(block: readonly string[]): void {
    this.#block = undefined;
    if (FAILURE.test(block.join(" "))) this.#ofLauncher(block);
    else for (const line of block) this.#ofRank(line);
  }

  #ofLauncher(lines: readonly string[]): void {
    this.#launcher.push(...lines.map((line) => line.replace(/^=[=\s]*/, "")));
    if (FAILURE.test(lines.join(" "))) this.#readers.failed();
  }

  #ofRank(line: string): void {
    if (line.trim() !== "") this.#readers.say(line);
  }
}
