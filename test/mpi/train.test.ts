// `switchyard train` in MPI jobs: checkpoints have the bytes of one process, and Ctrl-C saves a checkpoint.
// needs: cpu, mpi
// rotates with: runtime/mpi/, engine/train/
import { existsSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import path from "node:path";
import t from "tap";
import { whyNotNative } from "../../runtime/native/mod.ts";
import { switchyard, temporaryFolder } from "../helpers/cli.ts";
import {
  jobOf,
  LAUNCHERS,
  launchersInTurn,
  processesWith,
  skipWithoutMpi,
  startWith,
} from "../helpers/mpi.ts";
import { slowCompiler } from "../helpers/slow_compiler.ts";
import {
  contents,
  readOnDisk,
  TEXT,
  tinyModel,
} from "../helpers/tiny_training.ts";
import { inTurn, isInTurn, repeatWith } from "../helpers/seed.ts";

/** Returns the command line of a training on a mesh. */
function training(
  model: string,
  out: string,
  { mesh, steps, more = [] }: {
    readonly mesh: string;
    readonly steps: number;
    readonly more?: readonly string[];
  },
): string[] {
  return [
    ...["train", model, "--data", TEXT, "--out", out, "--mesh", mesh],
    ...["--steps", String(steps), "--decay", "100", "--lr", "0.01"],
    ...["--batch", "4", "--length", "16", "--adapter", "cpu", ...more],
  ];
}

/** Trains in this process. Returns the output. */
async function trainHere(argv: readonly string[]): Promise<string> {
  const { code, out, err } = await switchyard(argv);
  if (code !== 0) throw new Error(err);
  return out;
}

/** Returns losses and gradient norms of printed steps. */
function figures(out: string): readonly (readonly [number, number])[] {
  return out.match(/^\{"step".*$/gm)!.map((line) => {
    const { loss, gradientNorm } = JSON.parse(line);
    return [loss, gradientNorm];
  });
}

// A test below compares checkpoints of ep=2 with the other MPI.
const JOBS: readonly {
  readonly name: string;
  readonly mesh: string;
  readonly ranks: number;
  readonly more: readonly string[];
}[] = [
  {
    name: "dp=2 in bf16 with sharded optimizer state",
    mesh: "dp=2",
    ranks: 2,
    more: ["--dtype", "bf16", "--zero", "1"],
  },
  {
    name: "sharded experts and replicas",
    mesh: "dp=2,ep=2",
    ranks: 4,
    more: [],
  },
  {
    name: "sharded heads and experts",
    mesh: "tp=2,ep=2",
    ranks: 4,
    more: ["--accumulate", "2"],
  },
  {
    name: "stages of two ranks with split gradients",
    mesh: "pp=2,ep=2",
    ranks: 4,
    more: ["--accumulate", "3", "--pipeline", "zerobubble"],
  },
];

for (const { name, mesh, ranks, more } of inTurn(JOBS, JOBS.length)) {
  t.test(`checkpoints of ${name}`, { skip: skipWithoutMpi }, async (t) => {
    const model = await tinyModel(t);
    const scratch = temporaryFolder(t);
    const [here, out] = ["here", "out"].map((name) =>
      path.join(scratch, name)
    ) as [string, string];
    const job = { mesh, steps: 2, more: [...more, "--json"] };
    const printed = await trainHere(training(model, here, job));
    const [launcher] = launchersInTurn();
    const { code, out: found, err } = await startWith(launcher!, scratch, [
      ...["launch", "-n", String(ranks), "--", ...training(model, out, job)],
    ]).ended;
    t.equal(code, 0, err);
    t.same(
      await contents(out),
      await contents(here),
      "bytes of all files",
    );
    t.equal(figures(printed).length, 2);
    t.strictSame(figures(found), figures(printed), "losses and norms");
  });
}

// test/train_policy.test.ts copies weights between meshes of one process.
t.test("policy gradients copy weights between meshes of processes", {
  skip: skipWithoutMpi,
}, async (t) => {
  if (!isInTurn(0, 2)) {
    return t.comment(`Not in this rotation. ${repeatWith()}`);
  }
  const launcher = LAUNCHERS.find(({ skip }) => !skip)!;
  const scratch = temporaryFolder(t);
  const at = (name: string) => path.join(scratch, name);
  const start = { mesh: "ep=1", steps: 1 };
  await trainHere(training(await tinyModel(t), at("start"), start));
  await writeFile(at("prompts.txt"), "The king\nA wolf\n");
  // Only rank 0 computes rewards.
  await writeFile(
    at("reward.ts"),
    "let calls = 0;\nexport const reward = (_: string, text: string) => text.length + calls++;\n",
  );
  const argv = (out: string) => [
    ...["train", at("start"), "--reward", at("reward.ts"), "--samples", "4"],
    ...["--prompts", at("prompts.txt"), "--length", "16", "--kl", "0.1"],
    ...["--max-new-tokens", "6", "--mesh", "dp=2", "--rollout-mesh", "ep=2"],
    ...["--lora", "rank=2", "--steps", "2", "--lr", "0.1", "--out", at(out)],
    ...["--adapter", "cpu", "--json"],
  ];
  await trainHere(argv("here"));
  const { code, err, out } = await startWith(launcher, scratch, [
    ...["launch", "-n", "2", "--", ...argv("out")],
  ]).ended;
  t.equal(code, 0, err);
  t.same(await contents(at("out")), await contents(at("here")));
  const steps = out.match(/^\{"step".*$/gm)!.map((line) => JSON.parse(line));
  t.equal(steps.length, 2);
  for (const { policy } of steps) {
    t.equal(policy.logRatio, 0);
    t.ok(policy.movedBytes > 0);
  }
});

// 'launch' notifies ranks through a file, independent of the MPI.
t.test("Ctrl-C ends after a saved step", {
  skip: skipWithoutMpi,
}, async (t) => {
  const launcher = LAUNCHERS.find(({ skip }) => !skip)!;
  const model = await tinyModel(t);
  const scratch = temporaryFolder(t);
  const out = path.join(scratch, "out");
  const { child, printed, ended } = startWith(launcher, scratch, [
    ...["launch", "-n", "2", "--json", "--"],
    ...training(model, out, { mesh: "ep=2", steps: 1e6 }),
  ]);
  await printed;
  child.kill("SIGINT");
  const { code, err } = await ended;
  t.equal(code, 130, err);
  t.match(err, /Stopping after this step; interrupt again to stop immediately/);
  const { step } = await readOnDisk(out);
  t.ok(step >= 1, `step ${step}`);
  const here = path.join(scratch, "here");
  await trainHere(training(model, here, { mesh: "ep=2", steps: step }));
  t.same(await contents(out), await contents(here), "the same bytes");
});

t.test("a signal before the first step ends the job", {
  skip: skipWithoutMpi || await whyNotNative() || false,
}, async (t) => {
  const launcher = LAUNCHERS.findLast(({ skip }) => !skip)!;
  const model = await tinyModel(t);
  const scratch = temporaryFolder(t);
  const compiler = slowCompiler(scratch);
  const { child, ended } = startWith(launcher, scratch, [
    ...["launch", "-n", "2", "--", "train", model, "--data", TEXT],
    ...["--out", path.join(scratch, "out"), "--mesh", "ep=2", "--steps", "9"],
    ...["--batch", "4", "--length", "16", "--adapter", "native"],
  ], { env: compiler.env });
  await compiler.started(() => child.exitCode !== null);
  child.kill("SIGTERM");
  const { code, out, err } = await ended;
  t.strictSame({ code, out, err }, { code: 143, out: "", err: "" });
  const job = jobOf(scratch);
  t.strictSame(processesWith(job), [], "no process is left");
  t.notOk(existsSync(job), "no file is left");
});
