/** Everything that may go wrong with a rank, made to happen in real MPI jobs, and what must come of it. */

import { cpSync, existsSync, mkdtempSync, rmSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { checkpointFolder } from "./checkpoints.ts";
import { floats, integers, switchyard, writeRaw } from "./cli.ts";
import {
  jobOf,
  type Launcher,
  processesWith,
  startWith,
  withoutMpi,
} from "./mpi.ts";

/** Something that goes wrong. */
export interface Fault {
  readonly name: string;
  readonly ranks: number;
  /** What test/helpers/fault.mjs does. */
  readonly made?: { readonly rank: number; readonly kind: string };
  /** What `launch` is told once it has printed. */
  readonly signal?: NodeJS.Signals;
  /** What is launched; default: a run of the plan for so many ranks. */
  readonly argv?: readonly string[];
  /** Seconds that ranks wait for the one at fault. */
  readonly deadline?: number;
  readonly code: number;
  /** All that is said. */
  readonly message: RegExp;
}

const MIXTRAL = checkpointFolder("mixtral-6e");

/** What most ranks run: few kernels, and all that may go wrong between ranks. */
const MODEL = fileURLToPath(
  new URL("../fixtures/mpi/routed.ts", import.meta.url),
);

const STEP = "in step 'dispatch[^']*'";

/** Run a plan, which takes ranks less time to begin with than a model, where none of them compiles the model in it again. */
function runOf(ranks: number): readonly string[] {
  return [
    ...["run", `plan.${ranks}.json`, "--inputs", "in", "--outputs", "out"],
    "--allow-kernels",
  ];
}

/** All of them. */
export const FAULTS: readonly Fault[] = [
  // The first, the last, and one between them.
  ...[0, 1, 2].map((rank): Fault => ({
    name: `rank ${rank} of 3 is killed in the middle of dispatch`,
    ranks: 3,
    made: { rank, kind: "kill" },
    code: 3,
    message: new RegExp(
      `^Cannot finish: rank ${rank} on \\S+ was killed by signal 9 ${STEP}\\. Start the command again\\n$`,
    ),
  })),
  {
    name: "a rank is killed as it starts",
    ranks: 3,
    made: { rank: 1, kind: "early" },
    code: 3,
    message:
      /^Cannot finish: rank 1 on \S+ was killed by signal 9\. Start the command again\n$/,
  },
  {
    name: "a rank throws",
    ranks: 3,
    made: { rank: 1, kind: "throw" },
    code: 1,
    message: new RegExp(
      `^rank 1 on \\S+ ${STEP}: Cannot go on: an unexpected error, 'a fault that a test made'\\. .*\\n$`,
    ),
  },
  {
    name: "a rank leaves as if it were done",
    ranks: 3,
    made: { rank: 1, kind: "leave" },
    code: 1,
    message: new RegExp(
      `^rank 1 on \\S+ ${STEP}: Cannot go on: the program ended before its job did\\. .*\\n$`,
    ),
  },
  {
    name: "a rank is out of step",
    ranks: 3,
    made: { rank: 1, kind: "stray" },
    code: 3,
    message: new RegExp(
      `^rank 0 on \\S+: Cannot continue with step 'dispatch[^']*': rank 1 on \\S+ is out of step, it is in step 'compute [^']*'\\. .*\\n$`,
    ),
  },
  {
    name: "a rank stands still",
    ranks: 3,
    made: { rank: 1, kind: "stop" },
    deadline: 30,
    argv: [...runOf(3), "--deadline", "30"],
    code: 3,
    message: new RegExp(
      `^Cannot finish: a signal stopped rank 1 on \\S+ ${STEP}, and nobody continued it\\. Start the command again\\n$`,
    ),
  },
  {
    name: "a rank has another plan",
    ranks: 2,
    argv: ["run", "plan.2.json", "--inputs", "in", "--outputs", "out"],
    made: { rank: 1, kind: "folder" },
    code: 3,
    message:
      /^rank 0 on (\S+): Cannot run the plan: rank 1 on \1 has another plan than rank 0 on \1\. .*\n$/,
  },
  {
    name: "a file of the checkpoint is missing on a rank",
    ranks: 2,
    made: { rank: 1, kind: "folder" },
    argv: ["run", "model", "--inputs", "ids", "--outputs", "out"],
    code: 1,
    message:
      /^rank 1 on \S+: Cannot read 'model': it has no safetensors file\. Copy model\.safetensors there\n$/,
  },
  {
    name: "the user stops the job",
    ranks: 2,
    signal: "SIGINT",
    argv: [
      ...["generate", checkpointFolder("demo-lm"), "--prompt", "Once"],
      ...["--max-new-tokens", "500", "--max-context", "510"],
      ...["--temperature", "1"],
    ],
    code: 130,
    message: /^$/,
  },
];

/** Make the folders of ranks in a scratch folder: `here`, and `there`, where the files are others. */
export async function prepareFaults(scratch: string): Promise<void> {
  const ids = integers([2, 6], [5, 6, 7, 8, 9, 4, 3, 2, 11, 12, 13, 14]);
  for (const name of ["here", "there"]) {
    const folder = path.join(scratch, name);
    for (const file of ["config.json", "model.safetensors"]) {
      cpSync(
        path.join(MIXTRAL, file),
        path.join(folder, "model", file),
      );
    }
    await writeRaw(path.join(folder, "ids"), { input_ids: ids });
    await writeRaw(path.join(folder, "in"), {
      x: floats([11, 8], 1),
      router: floats([4, 8], 1),
    });
    for (const ranks of name === "here" ? [2, 3] : [2]) {
      const plan = await switchyard([
        ...["plan", MODEL, "--mesh", `ep=${ranks}`],
        ...name === "here" ? [] : ["--check"],
        ...["--out", path.join(folder, `plan.${ranks}.json`)],
      ]);
      if (plan.code !== 0) throw new Error(plan.err);
    }
  }
  rmSync(path.join(scratch, "there", "model", "model.safetensors"));
}

/** How a fault went. */
export interface FaultResult {
  /** What was not as it must be. */
  readonly problems: readonly string[];
  /** From the fault to the end of `launch`, for `npm run soak`. */
  readonly seconds: number | undefined;
  readonly message: string;
}

/** Let something go wrong once. Several may at a time. */
export async function makeFault(
  launcher: Launcher,
  scratch: string,
  fault: Fault,
): Promise<FaultResult> {
  const { made, signal, argv = runOf(fault.ranks) } = fault;
  const preload = fileURLToPath(new URL("fault.mjs", import.meta.url));
  const there = path.join(scratch, "there");
  const own = mkdtempSync(path.join(scratch, "job-"));
  const { child, ended, printed } = startWith(launcher, own, [
    ...["launch", "-n", String(fault.ranks), "--", ...argv],
    ...["--adapter", "cpu"],
  ], {
    cwd: path.join(scratch, "here"),
    env: made
      ? {
        NODE_OPTIONS: `--import=${preload}`,
        SWITCHYARD_FAULT: JSON.stringify({ ...made, folder: there }),
      }
      : {},
  });
  let begun: number | undefined;
  if (signal) {
    await printed;
    begun = Date.now();
    child.kill(signal);
  }
  const { code, err } = await ended;
  const now = Date.now();
  const at = /^fault at (\d+)$/m.exec(err)?.[1];
  if (at !== undefined) begun = Number(at);
  const message = withoutMpi(err).replace(/^fault at \d+\n/gm, "");
  const seconds = begun === undefined ? undefined : (now - begun) / 1000;
  const job = jobOf(own);
  // Nothing outlives 'launch', not even for a moment.
  const left = processesWith(job);
  const problems = [
    code === fault.code ? "" : `the exit code is ${code}`,
    fault.message.test(message) ? "" : `it says '${message}'`,
    ...left.map((pid) => `process ${pid} is left`),
    existsSync(job) ? `'${job}' is left` : "",
  ].filter((problem) => problem !== "");
  return { problems, seconds, message };
}
