// Dispatches in chunks between processes of real MPI jobs: the bytes of whole dispatches on one shared device.
// needs: cpu, mpi
import { readFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import path from "node:path";
import t from "tap";
import { checkpointFolder } from "../helpers/checkpoints.ts";
import {
  integers,
  switchyard,
  temporaryFolder,
  writeRaw,
} from "../helpers/cli.ts";
import {
  alternating,
  LAUNCHERS,
  startWith,
  withoutMpi,
} from "../helpers/mpi.ts";

const scratch = temporaryFolder(t);
const [inputs, shared, apart] = ["inputs", "shared", "apart"].map((name) =>
  path.join(scratch, name)
) as [string, string, string];
await writeRaw(inputs, {
  input_ids: integers([2, 4], [5, 6, 7, 8, 9, 4, 3, 2]),
});

/** Six experts: on four ranks two of them have one alone, and so nothing to send in a second chunk. */
const RUN = [
  ...["run", checkpointFolder("mixtral-6e"), "--inputs", inputs],
  ...["--adapter", "cpu", "--check", "--json"],
];

const JOBS = [{ ranks: 2, chunks: 3 }, { ranks: 4, chunks: 2 }];

const whole = await switchyard([...RUN, "--outputs", shared]);

for (const launcher of LAUNCHERS) {
  for (const { ranks, chunks } of alternating(JOBS, launcher)) {
    t.test(`${launcher.name}: ${chunks} chunks on ${ranks} ranks`, {
      skip: launcher.skip,
    }, async (t) => {
      t.equal(whole.code, 0);
      const { code, out, err } = await startWith(launcher, scratch, [
        ...["launch", "-n", String(ranks), "--", ...RUN],
        ...["--mesh", `ep=${ranks}`, "--chunks", String(chunks)],
        ...["--outputs", apart],
      ]).ended;
      t.strictSame([code, withoutMpi(err)], [0, ""]);
      const warns = new RegExp(
        `^${ranks} ranks share \\d+ cores?: each step`,
        "m",
      );
      t.equal(warns.test(err), ranks > availableParallelism(), "a warning");
      t.ok(readFileSync(apart).equals(readFileSync(shared)), "the same bytes");
      const figures = [
        ...out.matchAll(/"predicted": (\d+),\s+"actual": (\d+)/g),
      ];
      t.ok(figures.length >= 5 * ranks);
      for (const [, predicted, actual] of figures) t.equal(actual, predicted);
    });
  }
}
