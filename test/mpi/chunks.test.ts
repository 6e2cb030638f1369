// Chunked dispatches and rounds in MPI jobs compute the bytes of unchunked dispatches on one device.
// needs: cpu, mpi
// rotates with: runtime/mpi/, compiler/passes/rounds.ts
import { readFileSync, writeFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import path from "node:path";
import t, { type Test } from "tap";
import { checkpointFolder } from "../helpers/checkpoints.ts";
import {
  integers,
  switchyard,
  temporaryFolder,
  writeRaw,
} from "../helpers/cli.ts";
import { launchersInTurn, startWith, withoutMpi } from "../helpers/mpi.ts";
import { inTurn } from "../helpers/seed.ts";

const scratch = temporaryFolder(t);
const [inputs, shared, apart] = ["inputs", "shared", "apart"].map((name) =>
  path.join(scratch, name)
) as [string, string, string];
await writeRaw(inputs, {
  input_ids: integers([2, 4], [5, 6, 7, 8, 9, 4, 3, 2]),
});

/** Six experts: with four ranks, two ranks have one expert and send nothing in the second chunk. */
const RUN = [
  ...["run", checkpointFolder("mixtral-6e"), "--inputs", inputs],
  ...["--adapter", "cpu", "--check", "--json"],
];

const JOBS = [{ ranks: 2, chunks: 3 }, { ranks: 4, chunks: 2 }];

/** Fails unless memory and bytes of every rank match the predictions. */
function checkFigures(t: Test, out: string, ranks: number): void {
  const figures = [...out.matchAll(/"predicted": (\d+),\s+"actual": (\d+)/g)];
  t.ok(figures.length >= 5 * ranks);
  for (const [, predicted, actual] of figures) t.equal(actual, predicted);
}

const unchunked = await switchyard([...RUN, "--outputs", shared]);

for (const launcher of launchersInTurn()) {
  for (const { ranks, chunks } of inTurn(JOBS, 2)) {
    t.test(`${launcher.name}: ${chunks} chunks on ${ranks} ranks`, {
      skip: launcher.skip,
    }, async (t) => {
      t.equal(unchunked.code, 0);
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
      t.equal(
        warns.test(err),
        ranks > availableParallelism(),
        "warns of few cores",
      );
      t.ok(readFileSync(apart).equals(readFileSync(shared)), "the same bytes");
      checkFigures(t, out, ranks);
    });
  }
}

/** All tokens choose the first experts, which are on one rank. */
const ADVERSARIAL = `import {
  combine, dispatch, dot, model, mul, route, upTo,
} from "switchyard-moe";

export const layer = model({ token: upTo(24), embed: 8, expert: 8 }, (m) => {
  const x = m.input("x", "token embed");
  const logits = dot(x, m.param("router", "expert embed"), "embed");
  const routing = route(mul(logits, 0), {
    over: "expert", topK: 2, preset: "mixtral",
  });
  const w = m.param("experts.{expert}.w", "expert embed");
  return { y: combine(mul(dispatch(x, routing), w), routing) };
});
`;

const file = path.join(scratch, "adversarial.ts");
writeFileSync(file, ADVERSARIAL);
const RANDOM = ["run", file, "--random", "--adapter", "cpu", "--json"];
const [needed, worst] = ["needed", "worst"].map((name) =>
  path.join(scratch, name)
) as [string, string];
const one = await switchyard([...RANDOM, "--outputs", worst]);

for (const launcher of launchersInTurn()) {
  t.test(`${launcher.name}: rounds with all rows on one rank`, {
    skip: launcher.skip,
  }, async (t) => {
    t.equal(one.code, 0, one.err);
    const { code, out } = await startWith(launcher, scratch, [
      ...["launch", "-n", "4", "--", ...RANDOM, "--mesh", "ep=4"],
      ...["--receive-rows", "1.25x", "--outputs", needed],
    ]).ended;
    t.equal(code, 0);
    t.ok(readFileSync(needed).equals(readFileSync(worst)), "the same bytes");
    checkFigures(t, out, 4);
  });
}
