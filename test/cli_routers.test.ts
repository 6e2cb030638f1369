// `switchyard routers`: comparison of presets, as documented and as recorded from the original systems.
import { readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import t from "tap";
import type { RouterComparison, RouterRow } from "../engine/mod.ts";
import {
  type RawTensor,
  switchyard,
  temporaryFolder,
  writeRaw,
} from "./helpers/cli.ts";

const EXAMPLE = fileURLToPath(new URL("../examples/routers/", import.meta.url));
const LOGITS = path.join(EXAMPLE, "logits.json");
const folder = temporaryFolder(t);

async function compared(...args: string[]): Promise<RouterComparison> {
  const { code, out, err } = await switchyard([
    ...["routers", "--json", "--logits", LOGITS, ...args],
  ]);
  t.equal(code, 0, err);
  return JSON.parse(out) as RouterComparison;
}

t.test("the command prints the documented table", async (t) => {
  const text = readFileSync(path.join(EXAMPLE, "README.md"), "utf8");
  const [command, table] = [...text.matchAll(/```\n(.*?)```/gs)]
    .map((match) => match[1]!);
  const [name, ...argv] = command!.trim().split(/\s+/);
  t.equal(name, "switchyard");
  const root = path.join(EXAMPLE, "../..");
  const { code, out, err } = await switchyard(
    argv.map((arg) => arg.includes("/") ? path.join(root, arg) : arg),
  );
  t.strictSame([code, err], [0, ""]);
  t.equal(out.trimEnd(), table!.trimEnd());
});

/** Recorded from the code of each system on these logits: factor, drop, loss, min and max sum of weights. */
const RECORDED: readonly (readonly [
  string,
  number,
  "position" | "score" | undefined,
  number,
  number,
  number,
])[] = [
  ["fairscale.top2", 1, undefined, 0.0945005, 1, 1],
  ["deepspeed.top2", 1, undefined, 1.512008, 1, 1],
  ["deepspeed.topk", 1, "score", 1.1280019, 1, 1],
  ["deepspeed.topk", 1, "position", 1.1280019, 1, 1],
  ["tutel.topk", 1, undefined, 1.512008, 0.1253548, 1],
  ["tutel.topk", 0.5, undefined, 1.512008, 0.1364726, 1],
  ["tutel.prioritised", 1, undefined, 1.512008, 0.3189567, 1],
  ["tutel.prioritised", 0.5, undefined, 1.512008, 0.2418022, 1],
  ["megatron.postSoftmax", 1, undefined, 1.1280019, 0.380639, 1],
  ["megatron.postSoftmax", 0.5, undefined, 1.1280019, 0.3189567, 1],
  ["megatron.preSoftmax", 1, undefined, 1.1280019, 0.2232899, 0.9756494],
  ["megatron.sigmoid", 1, undefined, 1.0523117, 0.476902, 1],
  ["megatron.sigmoid", 0.5, undefined, 1.0523117, 0.452772, 1],
];

t.test("figures match the recorded systems", async (t) => {
  const close = (found: number, wanted: number, title: string) =>
    t.ok(Math.abs(found - wanted) <= 2e-6, `${title}: ${found}, ${wanted}`);
  for (const [preset, factor, drop, loss, smallest, largest] of RECORDED) {
    const { rows, zLoss } = await compared(
      ...["--preset", preset, "--capacity-factor", String(factor)],
      ...drop === undefined ? [] : ["--drop", drop],
    );
    const title = `${preset}, ${factor}, ${drop}`;
    t.strictSame(rows.map((row) => row.preset), [preset]);
    const [{ balancingLoss, weightSum, capacity }] = rows as [RouterRow];
    t.equal(capacity, 8 * factor, title);
    close(balancingLoss, loss, `${title}, loss`);
    close(weightSum[0], smallest, `${title}, least`);
    close(weightSum[1], largest, `${title}, largest`);
    close(zLoss, 4.4412374, "z-loss");
  }
});

t.test("kept and dropped choices sum to all choices", async (t) => {
  for (const k of [1, 2, 3, 4]) {
    const { rows } = await compared(
      ...["--top-k", String(k), "--capacity-factor", "0.5"],
    );
    t.ok(rows.length >= 20);
    for (const row of rows) {
      const { preset, topK, keptChoices, droppedChoices, load } = row;
      t.equal(keptChoices + droppedChoices, 16 * topK, preset);
      t.equal(load.reduce((a, b) => a + b, 0), keptChoices, preset);
      if (row.capacity !== null) {
        t.ok(Math.max(...load) <= row.capacity, preset);
      }
      if (droppedChoices === 0) t.equal(row.droppedTokens, 0, preset);
    }
  }
});

t.test("equal weights are found, and only those", async (t) => {
  const { equalWeights } = await compared("--capacity-factor", "1");
  t.strictSame(equalWeights, [
    ["switch.top1", "deepspeed.top1"],
    ["gshard.top2", "tutel.topk"],
    ["fairscale.top2", "deepspeed.top2"],
    ["mixtral", "qwen3Moe", "gptOss", "graniteMoe"],
    ["olmoe", "qwen2Moe", "deepseekV2"],
  ]);
});

t.test("logits of a safetensors file, by the tensor's name", async (t) => {
  const rows = JSON.parse(readFileSync(LOGITS, "utf8")) as number[][];
  const tensor = (shape: number[]): RawTensor => ({
    dtype: "F32",
    shape,
    data: new Uint8Array(Float32Array.from(rows.flat()).buffer),
  });
  const file = path.join(folder, "run.safetensors");
  await writeRaw(file, {
    "logits": tensor([16, 4]),
    "layer0.router_logits": tensor([2, 8, 4]),
  });
  const wanted = (await switchyard(["routers", "--logits", LOGITS])).out;
  for (const name of ["logits", "layer0.router_logits"]) {
    const { out } = await switchyard([
      ...["routers", "--logits", file, "--tensor", name],
    ]);
    t.equal(out, wanted, name);
  }
});

t.test("rejected logits and presets", async (t) => {
  const file = (name: string, text: string) => {
    const to = path.join(folder, name);
    writeFileSync(to, text);
    return to;
  };
  const refused: readonly (readonly [string, string[], string])[] = [
    [
      LOGITS,
      ["--preset", "gshard"],
      "Cannot route by preset 'gshard': there is none. Presets are 'switch.top1', ",
    ],
    [
      LOGITS,
      ["--top-k", "5"],
      "Cannot route to 5 experts: the logits are of 4. Lower --top-k",
    ],
    [
      file("ragged.json", "[[1, 2], [3]]"),
      [],
      "Cannot read logits of 'FILE': it is no list of rows of equally many numbers.",
    ],
    [
      file("none.json", "[]"),
      [],
      "Cannot read logits of 'FILE': it is no list of rows",
    ],
    [file("words.json", "[[1"), [], "Cannot read 'FILE': it is not JSON."],
    [
      file("large.json", "[[1, 2], [3, 1e400]]"),
      [],
      "Cannot use the logits of 'FILE': the one of token 1 and expert 1 is Infinity. Give finite numbers",
    ],
    [
      path.join(folder, "run.safetensors"),
      ["--tensor", "x"],
      "Cannot read logits of 'FILE': it has no tensor 'x'. Name one of its tensors with --tensor ('logits', 'layer0.router_logits')",
    ],
  ];
  for (const [from, args, sentence] of refused) {
    const { code, out, err } = await switchyard([
      ...["routers", "--logits", from, ...args],
    ]);
    t.strictSame([code, out], [1, ""]);
    t.ok(err.replace(from, "FILE").startsWith(sentence), err);
  }
});
