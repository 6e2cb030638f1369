// `switchyard train` between processes of real MPI jobs: checkpoints have the bytes of one process, and Ctrl-C saves.
// needs: cpu, mpi
import path from "node:path";
import t from "tap";
import { switchyard, temporaryFolder } from "../helpers/cli.ts";
import {
  alternating,
  LAUNCHERS,
  skipWithoutMpi,
  startWith,
} from "../helpers/mpi.ts";
import {
  contents,
  readOnDisk,
  TEXT,
  tinyModel,
} from "../helpers/tiny_training.ts";

/** The command line of a training on a mesh. */
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

/** A training in this process. */
async function trainHere(argv: readonly string[]): Promise<void> {
  const { code, err } = await switchyard(argv);
  if (code !== 0) throw new Error(err);
}

const JOBS = [
  { mesh: "ep=2", ranks: 2, more: [] },
  {
    ...{ mesh: "dp=2,ep=2", ranks: 4 },
    more: ["--dtype", "bf16", "--zero", "1"],
  },
];

for (const { mesh, ranks, more } of JOBS) {
  t.test(`checkpoints of ${[mesh, ...more].join(" ")}`, {
    skip: skipWithoutMpi,
  }, async (t) => {
    const model = await tinyModel(t);
    const scratch = temporaryFolder(t);
    const here = path.join(scratch, "here");
    await trainHere(training(model, here, { mesh, steps: 3, more }));
    const wanted = await contents(here);
    const takers = LAUNCHERS.filter((launcher) =>
      alternating(JOBS, launcher).some((job) => job.mesh === mesh)
    );
    for (const launcher of takers) {
      const { name, family, skip } = launcher;
      t.test(name, { skip }, async (t) => {
        const out = path.join(scratch, family);
        const { code, err } = await startWith(launcher, scratch, [
          ...["launch", "-n", String(ranks), "--"],
          ...training(model, out, { mesh, steps: 3, more }),
        ]).ended;
        t.equal(code, 0, err);
        t.same(await contents(out), wanted, "every byte, a file of each rank");
      });
    }
  });
}

for (const launcher of LAUNCHERS) {
  const { name, skip } = launcher;
  t.test(`${name}: Ctrl-C ends after a step that is saved`, {
    skip,
  }, async (t) => {
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
    t.equal(code, 0, err);
    t.match(err, /Stopping after this step; once more to stop at once/);
    const { step } = await readOnDisk(out);
    t.ok(step >= 1, `step ${step}`);
    const here = path.join(scratch, "here");
    await trainHere(training(model, here, { mesh: "ep=2", steps: step }));
    t.same(await contents(out), await contents(here), "the same bytes");
  });
}
