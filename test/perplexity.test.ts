/** Perplexity and divergence: windows, comparison with transformers, and several meshes. */
// needs: cpu
// rotates with: engine/score/

import { writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import t from "tap";
import { scoreTexts } from "../engine/mod.ts";
import { windowsOf } from "../engine/score/windows.ts";
import {
  checkpointFolder,
  loadCheckpoint,
  readReference,
} from "./helpers/checkpoints.ts";
import { switchyard, temporaryFolder } from "./helpers/cli.ts";
import { skipUnasked } from "./helpers/needs.ts";

const skip = skipUnasked("cpu");

t.test("windows score each token once, with context", (t) => {
  fc.assert(fc.property(
    fc.integer({ min: 0, max: 300 }),
    fc.integer({ min: 2, max: 40 }),
    fc.integer({ min: 1, max: 40 }),
    (length, context, wanted) => {
      const stride = Math.min(wanted, context);
      const windows = windowsOf(length, { context, stride });
      const scored = windows.flatMap(({ from, scored, to }) => {
        if (to - from > context || scored <= from) throw new Error("Cannot");
        return Array.from({ length: to - scored }, (_, i) => scored + i);
      });
      // Without overlap, the first token of a window has no context.
      const all = Array.from({ length }, (_, i) => i).filter((i) =>
        i > 0 && (stride < context || i % stride > 0)
      );
      t.strictSame(scored, all);
    },
  ));
  t.strictSame(windowsOf(10, { context: 6, stride: 3 }), [
    { from: 0, scored: 1, to: 6 },
    { from: 3, scored: 6, to: 9 },
    { from: 6, scored: 9, to: 10 },
  ]);
  t.end();
});

t.test(
  "cross-entropy equals that of transformers",
  { skip },
  async (t) => {
    const reference = await readReference("demo-lm");
    const { data, shape: [rows = 0, columns = 0] } = reference[
      "eval.input_ids"
    ]!;
    const texts = Array.from(
      { length: rows },
      (_, i) => Array.from(data.subarray(i * columns, (i + 1) * columns)),
    );
    const nll = Array.from(reference["eval.nll"]!.data);
    const loaded = await loadCheckpoint("demo-lm", {
      mesh: "ep=2",
      adapter: "cpu",
    });
    t.teardown(() => loaded.close());
    const { nats } = await scoreTexts(loaded, texts, {
      context: columns,
      stride: columns,
    });
    const mean = nll.reduce((sum, x) => sum + x, 0) / nll.length;
    const squares = nll.reduce((sum, x) => sum + (x - mean) ** 2, 0);
    t.equal(nats.count, nll.length);
    t.ok(Math.abs(nats.mean - mean) < 1e-5, `${nats.mean} and ${mean}`);
    const error = Math.sqrt(squares / (nll.length - 1) / nll.length);
    t.ok(Math.abs(nats.error - error) < 1e-5, `${nats.error} and ${error}`);
    t.ok(Math.abs(nats.largest - Math.max(...nll)) < 1e-3);
  },
);

t.test(
  "the command gives the same numbers on every mesh",
  { skip },
  async (t) => {
    const folder = temporaryFolder(t);
    const file = join(folder, "text.txt");
    writeFileSync(
      file,
      "Once upon a time there was a king who had a daughter. ".repeat(20),
    );
    const demo = checkpointFolder("demo-lm");
    const argv = [
      "perplexity",
      demo,
      file,
      "--window",
      "64",
      "--adapter",
      "cpu",
    ];
    const one = await switchyard([...argv, "--json"]);
    t.equal(one.code, 0, one.err);
    const found = JSON.parse(one.out) as {
      tokens: number;
      stride: number;
      perplexity: { value: number };
    };
    t.equal(found.stride, 32);
    t.ok(found.perplexity.value < 100);
    const two = await switchyard([...argv, "--json", "--mesh", "ep=2"]);
    t.equal(two.out, one.out);
    const same = await switchyard([
      ...argv,
      ...["--against", demo, "--mesh", "tp=2,ep=2", "--limit", "100"],
    ]);
    t.match(
      same.out,
      /^perplexity (\S+) \+\/- \S+ over 99 tokens, windows of 64, stride 32\nreference +\1 .*, change \+0.000 \+\/- 0.000 %\ndivergence 0.000e\+0 .*\nagreement +100.00 % of the likeliest tokens, 100.00 % of the chosen experts\n$/,
      same.err,
    );
    const bad = async (more: readonly string[], pattern: RegExp) => {
      const { code, err } = await switchyard([...argv, ...more]);
      t.equal(code, 1);
      t.match(err, pattern);
    };
    await bad(
      ["--window", "4096"],
      /^Cannot use windows of 4096 tokens: the model has 512 positions/,
    );
    await bad(
      ["--stride", "65"],
      /^Cannot use a stride of 65 with windows of 64/,
    );
    await bad(
      ["--against", checkpointFolder("olmoe-16e"), "--limit", "9"],
      /their vocabularies have 2048 and/,
    );
    writeFileSync(file, "a");
    await bad([], /^Cannot score the texts: they have fewer than two tokens/);
  },
);
