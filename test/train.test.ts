/** Training from outside: loss that falls, checkpoints that others read, runs that go on as if they had not been stopped. */

import { readFile, writeFile } from "node:fs/promises";
import path from "node:path";
import { gzipSync } from "node:zlib";
import t from "tap";
import { rateAt } from "../engine/mod.ts";
import { switchyard, temporaryFolder } from "./helpers/cli.ts";
import { contents, TEXT, tinyModel } from "./helpers/tiny_training.ts";

/** The flags of a short training. */
const FLAGS = [
  ...["--adapter", "cpu", "--batch", "4", "--length", "32"],
  ...["--lr", "0.01", "--warmup", "2", "--decay", "8"],
];

/** What continues a training takes no settings. */
const RESUME = ["--resume", "--adapter", "cpu"];

/** The text to train on. */
const ON_TEXT = ["--data", TEXT];

/** Run a command that must succeed. */
async function succeed(argv: readonly string[]): Promise<string> {
  const { code, out, err } = await switchyard(argv);
  if (code !== 0) throw new Error(`exit code ${code}: ${err}`);
  return out;
}

t.test("training, stopping and going on", async (t) => {
  const model = await tinyModel(t);
  const folder = temporaryFolder(t);
  const [straight, stopped] = ["straight", "stopped"].map((name) =>
    path.join(folder, name)
  ) as [string, string];

  const out = await succeed([
    ...["train", model, ...ON_TEXT, ...FLAGS, "--out", straight],
    ...["--steps", "8", "--json"],
  ]);
  const metrics = out.trim().split("\n").map((line) =>
    JSON.parse(line) as {
      readonly step: number;
      readonly ce_loss: number;
      readonly tokens: number;
      readonly expert_load: readonly (readonly number[])[];
    }
  );
  t.same(metrics.map(({ step }) => step), [1, 2, 3, 4, 5, 6, 7, 8]);
  const losses = metrics.map(({ ce_loss }) => ce_loss);
  t.ok(
    Math.abs(losses[0]! - Math.log(2048)) < 0.1,
    `random weights know nothing: ${losses[0]}`,
  );
  t.ok(losses[7]! < losses[0]! - 0.3, `losses ${losses}`);
  for (const { expert_load } of metrics) {
    t.same(
      expert_load.map((layer) =>
        Math.round(1e6 * layer.reduce((n, share) => n + share, 0))
      ),
      [1e6, 1e6],
      "all choices are counted, in both layers",
    );
  }

  await succeed([
    "train",
    model,
    ...ON_TEXT,
    ...FLAGS,
    "--out",
    stopped,
    "--steps",
    "3",
  ]);
  const before = await contents(stopped);
  await succeed([
    "train",
    model,
    ...ON_TEXT,
    ...RESUME,
    "--out",
    stopped,
    "--steps",
    "8",
  ]);
  t.not(before, await contents(stopped));
  t.same(
    await contents(stopped),
    await contents(straight),
    "the same files, byte for byte, as without the stop",
  );

  const text = await succeed([
    ...["generate", straight, "--prompt", "the", "--max-new-tokens", "4"],
    ...["--adapter", "cpu", "--json"],
  ]);
  t.match(JSON.parse(text), {
    sequences: [{ tokens: [Number, Number, Number, Number] }],
  }, "'generate' reads it");

  const packed = path.join(folder, "text.gz");
  await writeFile(packed, gzipSync(await readFile(TEXT)));
  const again = await succeed([
    ...["train", model, ...FLAGS, "--data", packed],
    ...["--out", path.join(folder, "packed"), "--steps", "1", "--json"],
  ]);
  t.same(
    (JSON.parse(again) as { readonly ce_loss: number }).ce_loss,
    losses[0],
    "packed text is the same text",
  );
});

t.test("what cannot be gone on with", async (t) => {
  const model = await tinyModel(t);
  const out = path.join(temporaryFolder(t), "out");
  const first = [
    "train",
    model,
    ...ON_TEXT,
    ...FLAGS,
    "--out",
    out,
    "--steps",
    "1",
  ];
  const resume = [
    "train",
    model,
    ...ON_TEXT,
    ...RESUME,
    "--out",
    out,
    "--steps",
    "2",
  ];
  t.match(await switchyard(resume), {
    code: 1,
    err: /no training was saved there\. Start one without --resume/,
  });
  await succeed(first);
  t.match(await switchyard(first), {
    code: 1,
    err: /has a checkpoint already\. Go on with it \(--resume\)/,
  });
  t.match(await switchyard([...resume, "--lr", "1"]), {
    code: 2,
    err: /Cannot use --lr with --resume/,
  });
  const other = path.join(path.dirname(out), "other.txt");
  await writeFile(other, "A fox and a crow. ".repeat(100));
  t.match(await switchyard([...resume, "--data", other]), {
    code: 1,
    err: /its text was another one\. Give the same data/,
  });
  const optimizer = path.join(
    out,
    "optimizer-00000001-00001-of-00001.safetensors",
  );
  const bytes = await readFile(optimizer);
  bytes[bytes.length - 1]! ^= 1;
  await writeFile(optimizer, bytes);
  t.match(await switchyard(resume), {
    code: 1,
    err: /tensor 'adamw\.\S+' is not what was saved/,
  });
  await writeFile(other, "short");
  t.match(
    await switchyard([
      ...["train", model, ...FLAGS, "--data", other, "--steps", "1"],
      ...["--out", path.join(path.dirname(out), "short")],
    ]),
    { code: 1, err: /one sequence takes 33\. Give more text or shorter/ },
  );
});

t.test("learning rates", (t) => {
  const schedule = { rate: 2, warmup: 4, decay: 12, floor: 0.25 };
  t.same([1, 2, 4, 8, 12, 20].map((step) => rateAt(schedule, step)), [
    ...[0.5, 1, 2, 1.25, 0.5, 0.5],
  ]);
  t.equal(rateAt({ rate: 3 }, 1e6), 3);
  t.end();
});
