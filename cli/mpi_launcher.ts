/** What differs between the launchers of MPI: their flags, and what they print when a rank fails. */

import type { Host } from "./hosts_file.ts";
import { FIRST, parseRankLine, type RankLine } from "./rank_lines.ts";

/** Whose mpirun it is. */
export type MpiFamily = "openMpi" | "mpich";

/** The family of an `mpirun --version` text. */
export function mpiFamily(version: string): MpiFamily | undefined {
  if (/Open MPI|OpenRTE|PRRTE/i.test(version)) return "openMpi";
  return /HYDRA|MPICH|Intel/i.test(version) ? "mpich" : undefined;
}

/** Where a job's ranks are started. */
export interface LauncherOptions {
  readonly ranks: number;
  readonly root: boolean;
  /** Default: this machine. */
  readonly hosts?: readonly Host[];
}

/** Arguments of mpirun, up to the program. */
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
    // More ranks than cores are slow, not wrong; and a rank has threads, so it is not bound to one core.
    "--oversubscribe",
    "--bind-to",
    "none",
    // On one host nothing goes over a network, and without one Open MPI would complain.
    ...list === undefined ? ["--mca", "btl", "^tcp"] : ["--host", list],
    "-n",
    String(ranks),
  ];
}

/** Lines of MPICH's launcher and library about a failed rank. */
const MPICH_LINE =
  /^=|^Abort\(\d+\)|^application called MPI_Abort|^YOUR APPLICATION TERMINATED|^This typically refers to|^Please see the FAQ|^\[(mpiexec|proxy:)/;

/** Lines of Open MPI outside of its blocks. */
const OPEN_MPI_LINE =
  /^(prterun|mpirun)[: ]|^\[[^\]]+:\d+\] (\*\*\* |.*(help message|MCA parameter))|^\d+ more process(es)? (has|have) sent help/;

/** What the event library of Open MPI's launcher says of a socket that closes as a rank dies; nothing follows from it. */
const OPEN_MPI_NOISE = /^\[warn\] Epoll /;

/** Lines around a block of Open MPI's launcher. */
const RULE = /^-{50,}$/;

/** What is only said when a rank failed. */
const FAILURE =
  /exited on signal|non-zero (status|exit code)|MPI_ABORT|calling "?abort|exiting improperly|BAD TERMINATION|MPI_Abort|MPI_ERRORS_ARE_FATAL|unexpectedly/;

/** Who takes what is on the standard error of a job. */
export interface LauncherReaders {
  /** Takes what ranks print. */
  say(line: string): void;
  /** Takes what ranks tell `launch`. */
  reported(line: RankLine): void;
  /** The launcher says that a rank failed. */
  failed(): void;
}

/** Tells apart, on standard error, what ranks say and what the launcher says of them. */
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

  /** Take some text. */
  push(text: string): void {
    // Open MPI ends some of its texts with a NUL.
    const lines = (this.#rest + text).replaceAll("\0", "").split(/\r?\n/);
    this.#rest = lines.pop()!;
    for (const line of lines) this.#line(line);
  }

  /** There is no more. */
  end(): void {
    if (this.#rest + this.#begun !== "") this.#line(this.#rest);
    this.#rest = "";
    if (this.#block) this.#endBlock(this.#block);
  }

  /** What the launcher said of a failure; for those that no rank reported. It may name the wrong rank. */
  cause(): string | undefined {
    const text = this.#launcher.join(" ").replace(/\s+/g, " ").trim();
    return text === "" ? undefined : `mpirun says '${text}'`;
  }

  #line(text: string): void {
    // A line of a rank may come in the midst of one that the launcher or a library has begun.
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

  // What is no failure, such as a remark about the network, is for the user.
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
