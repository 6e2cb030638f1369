/** Runs an MPI job: starts the launcher, filters its output, and ends all its processes. */

import { spawn } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { hostname, tmpdir } from "node:os";
import path from "node:path";
import process from "node:process";
import { setTimeout as sleep } from "node:timers/promises";
import { type CliIo, OutputClosed } from "../io.ts";
import {
  launcherProgram,
  LauncherText,
  type MpiFamily,
} from "./mpi_launcher.ts";
import {
  describeEnd,
  type RankFailure,
  type RankProcess,
  type StoppedRank,
} from "./rank_lines.ts";
import { finishLine } from "../flags/values.ts";

/** Time for a job to end by itself after a rank failed, and the further time until it is killed. */
const PATIENCE_MS = 2500, GRACE_MS = 3000;

/** Time for the ranks to free their memory after all results are written. */
const FREEING_MS = 60_000;

/**
 * MPICH's launcher reports failures on standard output, line by line. An incomplete last line may be the start of a
 * report.
 */
const MPICH_FAILURE = /\n?={60,}(\n=\s+BAD TERMINATION|\n?$)/;

/** The description of a job. */
export interface MpiJob {
  readonly argv: readonly string[];
  readonly family: MpiFamily;
  /** Folder of the memory that its ranks share. See `jobFolder`. */
  readonly folder: string;
  /** The message if the ranks, once they have begun, are asked to stop by themselves. Default: they are ended. */
  readonly stops?: string;
  /** Seconds that a signal may stop a rank. */
  readonly deadline: number;
}

/** The message of a server that is asked to end. */
export const ENDING =
  "Ending after the requests in progress; interrupt again to end immediately";

/** Returns the path of the file that tells the ranks on the launcher's host to stop. */
export function stopFile(folder: string): string {
  return path.join(folder, "stop");
}

/** The end of a job. */
export interface EndedJob {
  /** The launcher's exit code, which is unreliable. */
  readonly code: number;
  /** Rank 0 reported the end. */
  readonly finished: boolean;
  /** The job was done but had to be ended. Its results are complete. */
  readonly late: boolean;
  /** The signal that ended the job. */
  readonly signal: number | undefined;
  /** The signal that asked the ranks to stop by themselves. */
  readonly asked: number | undefined;
  /** Whether the ranks finished without leaving work undone. */
  readonly complete: boolean;
  /** The failed rank as a sentence, and its exit code. */
  readonly failure:
    | { readonly text: string; readonly code: number }
    | undefined;
  /** The launcher's message if no rank reported a failure. */
  readonly cause: string | undefined;
}

/** Creates the name of a job and of its shared-memory folder on every host. rank.sh creates and removes the folder. */
export function jobFolder(): string {
  const memory = "/dev/shm";
  return path.join(
    existsSync(memory) ? memory : tmpdir(),
    `switchyard-${crypto.randomUUID()}`,
  );
}

/** Runs a job to its end. `freeingMs` limits its time after the results are written. */
export async function runJob(
  io: CliIo,
  job: MpiJob,
  { freeingMs = FREEING_MS }: { readonly freeingMs?: number } = {},
): Promise<EndedJob> {
  const session = `${job.folder}-mpirun`;
  // A separate process group, so that all of it can be ended.
  const child = spawn(launcherProgram(job.family), job.argv, {
    detached: true,
    stdio: ["ignore", "pipe", "pipe"],
    env: {
      ...process.env,
      OMPI_MCA_btl_sm_backing_directory: job.folder,
      // The name of this setting in Open MPI 4.
      OMPI_MCA_btl_vader_backing_directory: job.folder,
      // By default, Open MPI names its folder by process number, and does not start if a killed mpirun left that
      // folder.
      PRTE_MCA_prte_local_tmpdir_base: session,
    },
  });
  const started: RankProcess[] = [];
  const stopped = new Map<number, StoppedRank>();
  let begun = false;
  const kill = (signal: NodeJS.Signals): void => {
    send(-child.pid!, signal);
  };
  let timer: NodeJS.Timeout | undefined;
  let ending = false;
  const endNow = (): void => {
    if (ending) return;
    ending = true;
    clearTimeout(timer);
    kill("SIGTERM");
    timer = setTimeout(() => kill("SIGKILL"), GRACE_MS);
  };
  const end = (): void => {
    if (freeing) {
      clearTimeout(timer);
      timer = undefined;
      freeing = false;
    }
    timer ??= setTimeout(endNow, PATIENCE_MS);
  };
  // Every rank is done and only frees its memory.
  let freeing = false, late = false;
  const finish = (): void => {
    if (timer) return;
    freeing = true;
    timer = setTimeout(() => {
      late = true;
      endNow();
    }, freeingMs);
  };
  let signal: number | undefined;
  let asked: number | undefined;
  const forward = (name: NodeJS.Signals, number: number): void => {
    if (job.stops && begun && name !== "SIGHUP" && !asked) {
      asked = number;
      mkdirSync(job.folder, { recursive: true });
      writeFileSync(stopFile(job.folder), "");
      io.err(job.stops);
      return;
    }
    signal = number;
    endNow();
  };
  const signals = ["SIGINT", "SIGTERM", "SIGHUP"] as const;
  for (const name of signals) process.on(name, forward);
  const failures: RankFailure[] = [];
  const text = new LauncherText(job.family, {
    say: (line) => {
      if (signal === undefined) io.err(line);
    },
    reported: (line) => {
      if (line.kind === "begun") begun = true;
      else if (line.kind === "started") started.push(line.process);
      else if (line.kind === "failed") {
        failures.push(line.failure);
        end();
      } else {
        const { rank, seconds } = line.stopped;
        if (seconds > 0) stopped.set(rank, line.stopped);
        else stopped.delete(rank);
        if (seconds < job.deadline) return;
        // The rank may have been done. Otherwise no other rank has more information.
        late ||= freeing;
        endNow();
      }
    },
    failed: end,
  });
  child.stderr.setEncoding("utf8").on("data", (chunk) => text.push(chunk));
  const output = new JobOutput(io, job.folder, {
    finished: finish,
    closed: endNow,
  });
  child.stdout.setEncoding("utf8").on("data", (chunk) => output.push(chunk));
  let left: NodeJS.Timeout | undefined;
  const code = await new Promise<number>((resolve, reject) => {
    child.on("error", reject);
    // A rank whose shell was killed keeps the launcher's output open.
    child.on("exit", () => {
      left = setTimeout(() => void endRanks(job.folder, started), PATIENCE_MS);
    });
    child.on("close", (code) => resolve(code ?? 1));
  });
  clearTimeout(timer);
  clearTimeout(left);
  await endRanks(job.folder, started);
  for (const name of signals) process.off(name, forward);
  for (const folder of [job.folder, session]) {
    rmSync(folder, { recursive: true, force: true });
  }
  const rest = await output.end();
  if (rest !== "") text.push(`${rest}\n`);
  text.end();
  return {
    code,
    signal,
    asked,
    complete: output.complete,
    finished: output.finished,
    late,
    cause: text.cause(),
    failure: describeEnd({
      started,
      failures,
      stopped: output.finished ? new Map() : stopped,
    }),
  };
}

/** Sends a signal to a process. Returns whether the process exists; signal 0 only checks this. */
function send(pid: number, signal: NodeJS.Signals | 0): boolean {
  try {
    return process.kill(pid, signal);
  } catch {
    return false;
  }
}

/** Milliseconds between checks of whether a rank has ended, until it is killed, and until the wait is abandoned. */
const LOOK_MS = 10, KILL_MS = 500, GIVE_UP_MS = 10_000;

/** Ends all processes of the job on this host. The launcher may have been killed, or may not have waited for them. */
async function endRanks(
  folder: string,
  started: readonly RankProcess[],
): Promise<void> {
  for (let waited = 0; waited < GIVE_UP_MS; waited += LOOK_MS) {
    const left = processesOf(folder, started);
    if (left.length === 0) return;
    for (const pid of left) send(pid, waited < KILL_MS ? "SIGTERM" : "SIGKILL");
    await sleep(LOOK_MS);
  }
}

/**
 * Returns the processes with the job's folder as an argument. If the system offers no list, returns the reported ones.
 */
function processesOf(
  folder: string,
  started: readonly RankProcess[],
): readonly number[] {
  let names: readonly string[];
  try {
    names = readdirSync("/proc");
  } catch {
    return started.filter(({ host, pid }) =>
      host === hostname() && send(pid, 0)
    )
      .map(({ pid }) => pid);
  }
  return names.filter((name) => {
    try {
      return /^\d+$/.test(name) &&
        readFileSync(`/proc/${name}/cmdline`, "utf8").split("\0")
          .includes(folder);
    } catch {
      // The process has ended.
      return false;
    }
  }).map(Number);
}

/** Events of a job's output. */
interface OutputEvents {
  /** Rank 0 is done. */
  finished(): void;
  /** The reader closed the output. */
  closed(): void;
}

/**
 * Filters the standard output of a job. Passes it on up to the finish line or to a failure report of MPICH's launcher.
 */
class JobOutput {
  readonly #io: CliIo;
  readonly #finish: string;
  readonly #left: string;
  readonly #events: OutputEvents;
  #held = "";
  #printed = Promise.resolve();
  #closed: OutputClosed | undefined;

  constructor(io: CliIo, mark: string, events: OutputEvents) {
    this.#io = io;
    this.#finish = finishLine(mark);
    this.#left = finishLine(mark, { left: true });
    this.#events = events;
  }

  get finished(): boolean {
    return this.#held.includes(this.#finish);
  }

  get complete(): boolean {
    return this.finished && !this.#held.includes(this.#left);
  }

  push(text: string): void {
    this.#held += text;
    const ready = this.#held.slice(0, this.#end());
    this.#held = this.#held.slice(ready.length);
    if (this.finished) this.#events.finished();
    if (ready === "") return;
    this.#printed = this.#printed.then(() => this.#io.out(ready))
      .catch((error) => {
        this.#closed ??= error as OutputClosed;
        this.#events.closed();
      });
  }

  /** Ends the output. Returns the rest that is not output of ranks. */
  async end(): Promise<string> {
    await this.#printed;
    if (this.#closed) throw this.#closed;
    if (!this.finished) return this.#held;
    const last = this.#held.slice(0, this.#held.indexOf(this.#finish));
    if (last !== "") await this.#io.out(last);
    return "";
  }

  /** Returns where the output of ranks ends: at the finish line or its possible start, or at a failure report. */
  #end(): number {
    const [text, finish] = [this.#held, this.#finish];
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
}
