/** Training from the command line: a falling loss, checkpoints that other programs read, and exact resumption. */
// needs: cpu

import { spawnSync } from "node:child_process";
import { readFile, writeFile } from "node:fs/promises";
import path from "node:path";
import { gzipSync } from "node:zlib";
import t from "tap";
import { duration } from "../cli/training_bar.ts";
import { rateAt } from "../engine/mod.ts";
import { switchyard, temporaryFolder } from "./helpers/cli.ts";
import {
  contents,
  readOnDisk,
  TEXT,
  tinyModel,
} from "./helpers/tiny_training.ts";

/** Flags of a short training. */
const FLAGS = [
  ...["--adapter", "cpu", "--batch", "4", "--length", "32"],
  ...["--lr", "0.01", "--warmup", "2", "--decay", "8"],
];

/** Flags that resume a training; they may repeat its original flags. */
const RESUME = ["--resume", ...FLAGS];

/** The training text. */
const ON_TEXT = ["--data", TEXT];

/** Runs a command that must succeed; returns its output. */
async function succeed(argv: readonly string[]): Promise<string> {
  const { code, out, err } = await switchyard(argv);
  if (code !== 0) throw new Error(`exit code ${code}: ${err}`);
  return out;
}

t.test("the remedy after a diverging step depends on the checkpoints", async (t) => {
  const model = await tinyModel(t);
  const folder = temporaryFolder(t);
  const errorOf = async (name: string, ...more: string[]) =>
    (await switchyard([
      ...["train", model, ...ON_TEXT, "--adapter", "cpu", "--batch", "4"],
      ...["--length", "32", "--lr", "1e30", "--steps", "4", ...more],
      ...["--out", path.join(folder, name)],
    ])).err;
  t.match(
    await errorOf("unsaved"),
    /\. Start again with a lower learning rate/,
  );
  t.match(
    await errorOf("saved", "--save-every", "1"),
    /\. Continue from the last checkpoint with a lower learning rate/,
  );
});

t.test("training, interrupting and resuming", async (t) => {
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
      readonly ceLoss: number;
      readonly tokens: number;
      readonly expertLoad: readonly (readonly number[])[];
    }
  );
  t.same(metrics.map(({ step }) => step), [1, 2, 3, 4, 5, 6, 7, 8]);
  const losses = metrics.map(({ ceLoss }) => ceLoss);
  t.ok(
    Math.abs(losses[0]! - Math.log(2048)) < 0.1,
    `the initial loss is that of random weights: ${losses[0]}`,
  );
  t.ok(losses[7]! < losses[0]! - 0.3, `losses ${losses}`);
  for (const { expertLoad } of metrics) {
    t.same(
      expertLoad.map((layer) =>
        // Shares are printed with four digits.
        Math.round(1e3 * layer.reduce((n, share) => n + share, 0))
      ),
      [1e3, 1e3],
      "all choices are counted in both layers",
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
    "the same bytes as without the interruption",
  );

  const text = await succeed([
    ...["generate", straight, "--prompt", "the", "--max-new-tokens", "4"],
    ...["--adapter", "cpu", "--json"],
  ]);
  t.match(JSON.parse(text), {
    sequences: [{ tokens: [Number, Number, Number, Number] }],
  }, "'generate' reads it");

  const compressed = path.join(folder, "text.gz");
  await writeFile(compressed, gzipSync(await readFile(TEXT)));
  const again = await succeed([
    ...["train", model, ...FLAGS, "--data", compressed],
    ...["--out", path.join(folder, "packed"), "--steps", "1", "--json"],
  ]);
  t.same(
    (JSON.parse(again) as { readonly ceLoss: number }).ceLoss,
    losses[0],
    "compressed text is the same text",
  );
});

t.test("durations are rounded before they are split into units", (t) => {
  t.strictSame(
    [0, 59.4, 59.6, 119.7, 3599.6, 7170, 86_400, Infinity].map(duration),
    ["0s", "59s", "1m00s", "2m00s", "1h00m", "2h00m", "24h00m", "?"],
  );
  t.end();
});

t.test("trainings that cannot be resumed", async (t) => {
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
    err: /has a checkpoint already\. Resume it \(--resume\)/,
  });
  t.strictSame(await switchyard([...resume, "--lr", "1"]), {
    code: 2,
    out: "",
    err:
      "Cannot use --lr 1 with --resume: the training started with 0.01. Leave it out\n",
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
    err: /tensor 'adamw\.\S+' differs from the saved one/,
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

/** Reads a checkpoint like Hugging Face's loaders: all shards of the index, each tensor from its shard. */
const READER = `
import json, os, sys, safetensors
folder = sys.argv[1]
read = lambda name: open(os.path.join(folder, name), "rb").read()
places = json.loads(read("model.safetensors.index.json"))["weight_map"]
found = {}
for shard in sorted(set(places.values())):
    for name, tensor in safetensors.deserialize(read(shard)):
        assert places[name] == shard, name
        found[name] = [tensor["dtype"], tensor["shape"], tensor["data"].hex()]
assert set(found) == set(places)
print(json.dumps(found))
`;

/** A Python with the safetensors package, if any. */
const PYTHON = ["python3", "/usr/bin/python3"].find((python) =>
  spawnSync(python, ["-c", "import safetensors"]).status === 0
);

t.test("Hugging Face's reader reads checkpoints of several ranks", {
  skip: PYTHON === undefined && "there is no Python with safetensors",
}, async (t) => {
  const model = await tinyModel(t);
  const out = path.join(temporaryFolder(t), "out");
  await succeed([
    ...["train", model, ...ON_TEXT, ...FLAGS, "--out", out],
    ...["--steps", "1", "--mesh", "ep=2"],
  ]);
  const { stdout, stderr } = spawnSync(PYTHON!, ["-c", READER, out], {
    encoding: "utf8",
    maxBuffer: 1 << 28,
  });
  t.equal(stderr, "");
  const found = JSON.parse(stdout) as {
    readonly [name: string]: readonly [string, readonly number[], string];
  };
  const { parameters, shards } = await readOnDisk(out);
  t.equal(shards.length, 2);
  t.same(
    Object.fromEntries(
      Object.entries(found).map(([name, [, , data]]) => [name, data]),
    ),
    parameters,
    "every byte",
  );
  t.same(found["model.layers.0.mlp.experts.3.down_proj.weight"]?.slice(0, 2), [
    "F32",
    [32, 24],
  ], "experts are separate tensors");
  for (const shard of shards) {
    const bytes = await readFile(path.join(out, shard));
    const head = bytes.toString("utf8", 8, 8 + Number(bytes.readBigUInt64LE()));
    t.match(JSON.parse(head), { __metadata__: { format: "pt" } });
  }
  const config = await readFile(path.join(out, "config.json"), "utf8");
  t.match(JSON.parse(config), { architectures: ["OlmoeForCausalLM"] });
  t.ok(await readFile(path.join(out, "tokenizer.json")));
});

t.test("learning rates", (t) => {
  const schedule = { rate: 2, warmup: 4, decay: 12, floor: 0.25 };
  t.same([1, 2, 4, 8, 12, 20].map((step) => rateAt(schedule, step)), [
    ...[0.5, 1, 2, 1.25, 0.5, 0.5],
  ]);
  t.equal(rateAt({ rate: 3 }, 1e6), 3);
  t.end();
});
