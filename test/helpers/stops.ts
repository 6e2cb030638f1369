/** Stops a rank of an MPI job with SIGSTOP at a random moment, and checks the job's end. */

import {
  existsSync,
  type FSWatcher,
  mkdtempSync,
  readFileSync,
  watch,
} from "node:fs";
import path from "node:path";
import process from "node:process";
import { setTimeout as sleep } from "node:timers/promises";
import { checkpointFolder } from "./checkpoints.ts";
import {
  jobOf,
  type Launcher,
  processesWith,
  startWith,
  withoutMpi,
} from "./mpi.ts";
import { TEXT } from "./tiny_training.ts";

/** Moments of a stop: up to `ms` milliseconds after an observable event of the job. */
export const MOMENTS = {
  generate: { after: "process", ms: 600 },
  start: { after: "process", ms: 600 },
  load: { after: "folder", ms: 1500 },
  step: { after: "step", ms: 600 },
  save: { after: "save", ms: 10 },
  end: { after: "last step", ms: 100 },
} as const satisfies {
  readonly [moment: string]: {
    readonly after: "process" | "folder" | "step" | "save" | "last step";
    readonly ms: number;
  };
};

export type Moment = keyof typeof MOMENTS;

/** A random stop. */
export interface Stop {
  readonly moment: Moment;
  readonly rank: number;
  /** Fraction of the moment's milliseconds. */
  readonly share: number;
}

/** Outcome of a stop. */
export interface StopResult {
  /** Deviations from the expected outcome. */
  readonly problems: readonly string[];
  /** Seconds from the stop to the end of `launch`. */
  readonly seconds: number;
  readonly code: number | null;
  readonly message: string;
}

const LAST = 3;

/** Runs a job of two ranks and stops one rank once. May run concurrently with others. */
export async function stopRank(
  launcher: Launcher,
  { scratch, model, deadline }: {
    readonly scratch: string;
    readonly model: string;
    readonly deadline: number;
  },
  { moment, rank, share }: Stop,
): Promise<StopResult> {
  const jobFolder = mkdtempSync(path.join(scratch, "stop-"));
  const out = path.join(jobFolder, "out");
  const steps = moment === "end" ? LAST : 1e6;
  const command = moment === "generate"
    ? [
      ...["generate", checkpointFolder("demo-lm"), "--prompt", "Once"],
      ...["--max-new-tokens", "500", "--max-context", "510"],
    ]
    : [
      ...["train", model, "--data", TEXT, "--out", out, "--mesh", "ep=2"],
      ...["--steps", String(steps), "--save-every", "1"],
      ...["--batch", "2", "--length", "16"],
    ];
  const { child, ended } = startWith(launcher, jobFolder, [
    ...["launch", "-n", "2", "--json", "--", ...command],
    ...["--adapter", "cpu", "--deadline", String(deadline)],
  ]);
  let lines = 0;
  child.stdout!.on("data", (text) => lines += `${text}`.split("\n").length - 1);
  // A file that is being written is detected by its event; polling may miss it.
  let saving = false, watcher: FSWatcher | undefined;
  const isSaving = () => {
    watcher ??= watch(out, (_, name) => {
      saving ||= /^\.(model|optimizer)/.test(name ?? "");
    });
    return saving;
  };
  const occurred: { readonly [after: string]: () => boolean } = {
    process: () => true,
    folder: () => existsSync(out),
    step: () => lines > 0,
    save: () => lines > 0 && isSaving(),
    "last step": () => lines >= LAST,
  };
  const { after, ms } = MOMENTS[moment];
  let pid: number | undefined;
  while (child.exitCode === null) {
    pid ??= rankOf(launcher, jobFolder, rank);
    if (pid !== undefined && occurred[after]!()) break;
    await sleep(2);
  }
  watcher?.close();
  await sleep(share * ms);
  let stopped = false;
  try {
    stopped = pid !== undefined && process.kill(pid, "SIGSTOP");
  } catch {
    // The process has ended.
  }
  const begun = performance.now();
  const { code, err } = await ended;
  const seconds = (performance.now() - begun) / 1000;
  const message = withoutMpi(err);
  const job = jobOf(jobFolder);
  const reported = new RegExp(
    `^Cannot finish: a signal stopped rank ${rank} on \\S+( .*)?, and nobody continued it\\. Start the command again\\n$`,
  );
  const done = moment === "end" && code === 0 && message === "";
  const problems = [
    stopped || done ? "" : "no rank was stopped",
    done || code === 3 && reported.test(message)
      ? ""
      : `it ends with ${code} and says '${message}'`,
    ...processesWith(job).map((pid) => `process ${pid} is left`),
    existsSync(job) ? `'${job}' is left` : "",
  ].filter((problem) => problem !== "");
  return { problems, seconds, code, message };
}

/** Returns the process id of a rank, or undefined before its start. */
export function rankOf(
  { rankVariable }: Pick<Launcher, "rankVariable">,
  scratch: string,
  rank: number,
): number | undefined {
  const file = path.join(scratch, "bin", "arguments");
  // mpirun is first run with --version.
  if (!existsSync(file) || !/ --job /.test(readFileSync(file, "utf8"))) {
    return undefined;
  }
  return processesWith(jobOf(scratch), `${rankVariable}=${rank}`).find(
    (pid) => {
      try {
        return readFileSync(`/proc/${pid}/cmdline`, "utf8")
          .startsWith(`${process.execPath}\0`);
      } catch {
        return false;
      }
    },
  );
}
