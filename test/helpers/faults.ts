/** Faults of ranks in real MPI jobs, with the expected exit codes and messages. */

import {
  cpSync,
  existsSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
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

/** A fault and its expected outcome. */
export interface Fault {
  readonly name: string;
  readonly ranks: number;
  /** Fault that test/helpers/fault.mjs injects. */
  readonly injected?: { readonly rank: number; readonly kind: string };
  /** Signal sent to `launch` after its first output. */
  readonly signal?: NodeJS.Signals;
  /** Arguments after `launch --`. Default: run the plan for this number of ranks. */
  readonly argv?: readonly string[];
  /** Seconds that the other ranks wait for the faulty one. */
  readonly deadline?: number;
  readonly code: number;
  /** Complete standard error, except the output of MPI. */
  readonly message: RegExp;
}

const MIXTRAL = checkpointFolder("mixtral-6e");

/** Model of most faults: few kernels, all kinds of exchange. */
const MODEL = fileURLToPath(
  new URL("../fixtures/mpi/routed.ts", import.meta.url),
);

const STEP = "in step 'dispatch[^']*'";

/** Returns a command that runs a plan. Ranks start faster than with a model, as none compiles it. */
function runOf(ranks: number): readonly string[] {
  return [
    ...["run", `plan.${ranks}.json`, "--inputs", "in", "--outputs", "out"],
    "--allow-kernels",
  ];
}

export const FAULTS: readonly Fault[] = [
  // First, middle and last rank.
  ...[0, 1, 2].map((rank): Fault => ({
    name: `rank ${rank} of 3 is killed in the middle of dispatch`,
    ranks: 3,
    injected: { rank, kind: "kill" },
    code: 3,
    message: new RegExp(
      `^Cannot finish: rank ${rank} on \\S+ was killed by signal 9 ${STEP}\\. Start the command again\\n$`,
    ),
  })),
  {
    name: "a rank is killed as it starts",
    ranks: 3,
    injected: { rank: 1, kind: "early" },
    code: 3,
    message:
      /^Cannot finish: rank 1 on \S+ was killed by signal 9\. Start the command again\n$/,
  },
  {
    name: "a rank throws",
    ranks: 3,
    injected: { rank: 1, kind: "throw" },
    code: 1,
    message: new RegExp(
      `^rank 1 on \\S+ ${STEP}: Cannot go on: an unexpected error, 'a fault that a test made'\\. .*\\n$`,
    ),
  },
  {
    name: "a rank exits with code 0 in the middle of dispatch",
    ranks: 3,
    injected: { rank: 1, kind: "leave" },
    code: 1,
    message: new RegExp(
      `^rank 1 on \\S+ ${STEP}: Cannot go on: the program ended before its job did\\. .*\\n$`,
    ),
  },
  {
    name: "a rank is out of step",
    ranks: 3,
    injected: { rank: 1, kind: "stray" },
    code: 3,
    message: new RegExp(
      `^rank 0 on \\S+: Cannot continue with step 'dispatch[^']*': rank 1 on \\S+ is out of step, it is in step 'compute [^']*'\\. .*\\n$`,
    ),
  },
  {
    name: "a rank is stopped by a signal",
    ranks: 3,
    injected: { rank: 1, kind: "stop" },
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
    injected: { rank: 1, kind: "folder" },
    code: 3,
    message:
      /^rank 0 on (\S+): Cannot run the plan: rank 1 on \1 has another plan than rank 0 on \1\. .*\n$/,
  },
  {
    name: "a rank has another weight",
    ranks: 2,
    argv: ["run", "other", "--inputs", "ids", "--outputs", "out"],
    injected: { rank: 1, kind: "folder" },
    code: 3,
    message:
      /^rank 0 on (\S+): Cannot run the plan: rank 1 on \1 has another checkpoint than rank 0 on \1\. .*\n$/,
  },
  {
    name: "a file of the checkpoint is missing on a rank",
    ranks: 2,
    injected: { rank: 1, kind: "folder" },
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

/** Creates two folders for ranks in `scratch`: `here`, and `there` with different files. */
export async function prepareFaults(scratch: string): Promise<void> {
  const ids = integers([2, 6], [5, 6, 7, 8, 9, 4, 3, 2, 11, 12, 13, 14]);
  for (const name of ["here", "there"]) {
    const folder = path.join(scratch, name);
    for (const model of ["model", "other"]) {
      for (const file of ["config.json", "model.safetensors"]) {
        cpSync(path.join(MIXTRAL, file), path.join(folder, model, file));
      }
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
  changeWeight(path.join(scratch, "there", "other", "model.safetensors"));
}

/** Inverts the lowest bit of the first element of the embedding. */
function changeWeight(file: string): void {
  const bytes = readFileSync(file);
  const data = 8 + Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.toString("utf8", 8, data));
  const [begin] = header["model.embed_tokens.weight"].data_offsets;
  bytes[data + begin]! ^= 1;
  writeFileSync(file, bytes);
}

/** Outcome of a fault. */
export interface FaultResult {
  /** Deviations from the expected outcome. */
  readonly problems: readonly string[];
  /** Seconds from the fault to the end of `launch`, for `npm run soak`. */
  readonly seconds: number | undefined;
  readonly message: string;
}

/** Runs a job with a fault. May run concurrently with others. */
export async function makeFault(
  launcher: Launcher,
  scratch: string,
  fault: Fault,
): Promise<FaultResult> {
  const { injected, signal, argv = runOf(fault.ranks) } = fault;
  const preload = fileURLToPath(new URL("fault.mjs", import.meta.url));
  const there = path.join(scratch, "there");
  const jobFolder = mkdtempSync(path.join(scratch, "job-"));
  const { child, ended, printed } = startWith(launcher, jobFolder, [
    ...["launch", "-n", String(fault.ranks), "--", ...argv],
    ...["--adapter", "cpu"],
  ], {
    cwd: path.join(scratch, "here"),
    env: injected
      ? {
        NODE_OPTIONS: `--import=${preload}`,
        SWITCHYARD_FAULT: JSON.stringify({ ...injected, folder: there }),
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
  const job = jobOf(jobFolder);
  // No process or folder outlives 'launch'.
  const left = processesWith(job);
  const problems = [
    code === fault.code ? "" : `the exit code is ${code}`,
    fault.message.test(message) ? "" : `it says '${message}'`,
    ...left.map((pid) => `process ${pid} is left`),
    existsSync(job) ? `'${job}' is left` : "",
  ].filter((problem) => problem !== "");
  return { problems, seconds, message };
}
