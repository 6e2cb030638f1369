/** `run --random`: a model before it has weights; `run --check` reports its checks. */
// needs: cpu

import { readFileSync } from "node:fs";
import path from "node:path";
import t from "tap";
import { switchyard, temporaryFolder } from "./helpers/cli.ts";

const TWO = path.join(import.meta.dirname, "../examples/two_moe.ts");
const CONFIG = path.join(
  import.meta.dirname,
  "references/mixtral-6e/config.json",
);

t.test("run --random gives the same bytes on every mesh, and different bytes for another seed", async (t) => {
  const scratch = temporaryFolder(t);
  const run = async (...flags: string[]) => {
    const to = path.join(scratch, "out");
    const { code, out, err } = await switchyard([
      ...["run", TWO, "--adapter", "cpu", "--outputs", to, ...flags],
    ]);
    t.strictSame([code, err], [0, ""]);
    return { out, bytes: readFileSync(to).toString("base64") };
  };
  const one = await run("--random");
  const two = await run("--random", "0", "--mesh", "ep=2", "--check");
  t.equal(two.bytes, one.bytes);
  t.match(
    two.out,
    /^Drew missing weights and inputs from seed 0\nWrote .*\n {2}y f32 \[24, 32\], -\d+\.\d+ to \d+\.\d+, mean -?\d/,
  );
  t.match(
    two.out,
    /\nchecked 2 routings: every choice of an expert returned to its token\n/,
  );
  t.notMatch(one.out, /checked/);
  t.not((await run("--random", "7")).bytes, one.bytes);
});

t.test("run --random accepts a configuration without weights, and prints a summary", async (t) => {
  const argv = ["run", CONFIG, "--adapter", "cpu", "--random", "3", "--check"];
  const { code, out, err } = await switchyard([...argv, "--json"]);
  t.strictSame([code, err], [0, ""]);
  t.match(JSON.parse(out), {
    seed: 3,
    checkedRoutings: 2,
    ranks: [{ rank: 0 }],
  });
  t.match(
    (await switchyard(argv)).out,
    /\nOutputs\n {2}logits f32 \[3, 8, 160\]/,
  );
});

t.test("run names missing options", async (t) => {
  const cases: [string[], string][] = [
    [
      [],
      "Cannot run the model: --inputs is missing. Give a file, or --random for random inputs\n",
    ],
    [
      ["--inputs", "in"],
      "Cannot run the model: --outputs is missing. Give a file, or --random to print a summary\n",
    ],
    [
      ["--random", "1.5"],
      "Cannot use --random '1.5'. Give a whole number as the seed, or none and the model before it\n",
    ],
  ];
  for (const [flags, message] of cases) {
    const { code, err } = await switchyard(["run", TWO, ...flags]);
    t.strictSame([code, err], [2, message]);
  }
});
