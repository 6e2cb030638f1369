/** What differs between the launchers of MPI: their flags, and what they print when a rank fails. */

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
  readonly hosts?: string;
}

/** Arguments of mpirun, up to the program. */
export function launcherArguments(
  family: MpiFamily,
  { ranks, root, hosts }: LauncherOptions,
): string[] {
  if (family === "mpich") {
    return [...hosts === undefined ? [] : ["-f", hosts], "-n", String(ranks)];
  }
  return [
    ...root ? ["--allow-run-as-root"] : [],
    // More ranks than cores are slow, not wrong; and a rank has threads, so it is not bound to one core.
    ...["--oversubscribe", "--bind-to", "none"],
    // On one host nothing goes over a network, and without one Open MPI would complain.
    ...hosts === undefined ? ["--mca", "btl", "^tcp"] : ["--hostfile", hosts],
    ...["-n", String(ranks)],
  ];
}

/** Lines of MPICH's launcher and library about a failed rank. */
const MPICH_LINE =
  /^=|^Abort\(\d+\)|^application called MPI_Abort|^YOUR APPLICATION TERMINATED|^This typically refers to|^Please see the FAQ|^\[(mpiexec|proxy:)/;

/** Lines of Open MPI outside of its blocks. */
const OPEN_MPI_LINE =
  /^(prterun|mpirun)[: ]|^\[[^\]]+:\d+\] .*(help message|MCA parameter)|^\d+ more process(es)? (has|have) sent help/;

/** Lines around a block of Open MPI's launcher. */
const RULE = /^-{50,}$/;

/** What is only said when a rank failed. */
const FAILURE =
  /exited on signal|non-zero status|MPI_ABORT|calling "?abort|exiting improperly|BAD TERMINATION|MPI_Abort|unexpectedly/;

/** A rank's process. */
export interface RankProcess {
  readonly rank: number;
  readonly host: string;
  readonly pid: number;
}

const RANK_LINE = "\x1erank ";

/** What a rank tells `launch` of itself, on standard error. */
export function rankLine({ rank, host, pid }: RankProcess): string {
  return `${RANK_LINE}${rank} ${host} ${pid}`;
}

/** Tells apart, on standard error, what ranks say and what the launcher says of them. */
export class LauncherText {
  readonly #family: MpiFamily;
  readonly #say: (line: string) => void;
  readonly #failed: () => void;
  readonly #launcher: string[] = [];
  readonly #ranks: RankProcess[] = [];
  #block: string[] | undefined;
  #rest = "";
  #ranksSpoke = false;

  /** `say` takes the lines of ranks; `failed` is called when the launcher says that a rank failed. */
  constructor(
    family: MpiFamily,
    say: (line: string) => void,
    failed: () => void,
  ) {
    this.#family = family;
    this.#say = say;
    this.#failed = failed;
  }

  /** A rank said what is wrong. */
  get ranksSpoke(): boolean {
    return this.#ranksSpoke;
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
    if (this.#rest !== "") this.#line(this.#rest);
    this.#rest = "";
    if (this.#block) this.#endBlock(this.#block);
  }

  /** Which rank failed and how, in the launcher's words; undefined where it did not say. */
  cause(): string | undefined {
    const text = this.#launcher.join(" ").replace(/\s+/g, " ");
    const killed =
      /process rank (\d+) with PID \d+ on node (\S+) exited on signal (\d+)/
        .exec(text);
    if (killed) {
      return `rank ${killed[1]} on ${killed[2]} was killed by signal ${
        killed[3]
      }`;
    }
    const [, pid, host] = /PID (\d+) RUNNING AT (\S+)/.exec(text) ?? [];
    const bad = this.#ranks.find((process) =>
      process.pid === Number(pid) && process.host === host
    );
    if (bad) {
      const signal = /\(signal (\d+)\)/.exec(text)?.[1];
      const code = /EXIT CODE: (\d+)/.exec(text)?.[1];
      return `rank ${bad.rank} on ${bad.host} ${
        signal
          ? `was killed by signal ${signal}`
          : `ended with exit code ${code}`
      }`;
    }
    return text === "" ? undefined : `mpirun says '${text.trim()}'`;
  }

  #line(line: string): void {
    if (this.#family === "openMpi" && RULE.test(line)) {
      if (this.#block) this.#endBlock(this.#block);
      else this.#block = [];
      return;
    }
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
    if (FAILURE.test(lines.join(" "))) this.#failed();
  }

  #ofRank(line: string): void {
    if (line.trim() === "") return;
    if (line.startsWith(RANK_LINE)) {
      const [rank, host, pid] = line.slice(RANK_LINE.length).split(" ");
      this.#ranks.push({ rank: Number(rank), host: host!, pid: Number(pid) });
      return;
    }
    if (/^(rank \d+ on \S+: )?Cannot /.test(line)) this.#ranksSpoke = true;
    this.#say(line);
  }
}
