// Receipts: a replay on another mesh has the same bits, and names a changed weight, tokenizer, token, logit or seed.
// needs: cpu
// rotates with: engine/generation/receipt/

import { readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import t from "tap";
import { hashCheckpoint } from "../engine/mod.ts";
import { listWeightFiles } from "../engine/checkpoint/checkpoint.ts";
import { files } from "./helpers/checkpoints.ts";
import { copyCheckpoint, switchyard, temporaryFolder } from "./helpers/cli.ts";
import { startServer } from "./helpers/serve.ts";

const folder = temporaryFolder(t);
const checkpoint = await copyCheckpoint("demo-lm", folder);
const file = path.join(folder, "receipt.json");

interface Receipt {
  readonly sequences: readonly {
    readonly tokens: readonly number[];
    readonly sampling: { readonly seed: number };
    readonly logits: readonly (readonly [number, string])[];
  }[];
}

/** Replays a receipt. Returns the exit code and the differences. */
async function replay(...args: string[]) {
  const { code, out, err } = await switchyard([
    ...["replay", file, "--adapter", "cpu", ...args],
  ]);
  return [code, (code === 0 ? out : err).trimEnd()];
}

t.test("a response has a receipt, and its replay is equal", async (t) => {
  const server = await startServer(
    checkpoint,
    ...["--mesh", "ep=4", "--speculate", "3"],
  );
  t.teardown(() => server.stop());
  const request = {
    prompt: ["Once upon a time", "The fox"],
    n: 2,
    max_tokens: 12,
    seed: 9,
    stop: " the",
    presence_penalty: 1,
    logit_bias: { 300: 2 },
    receipt: true,
  };
  const ask = async (path: string, body: object) => {
    const response = await server.post(path, body);
    return await response.text();
  };
  const { receipt, choices, usage } = JSON.parse(
    await ask("/v1/completions", request),
  ) as {
    receipt: Receipt;
    choices: unknown[];
    usage: { completion_tokens: number };
  };
  t.equal(receipt.sequences.length, choices.length);
  const events = await ask("/v1/completions", { ...request, stream: true });
  const last = events.trim().split("\n\n").at(-2)!;
  t.strictSame(
    (JSON.parse(last.slice("data: ".length)) as { receipt: unknown }).receipt,
    receipt,
    "streamed",
  );
  writeFileSync(file, JSON.stringify(receipt));
  const [code, text] = await replay("--mesh", "ep=2");
  t.equal(code, 0);
  t.match(text, `${usage.completion_tokens} tokens and `);
  for (
    const [more, reason] of [
      [{ echo: true, logprobs: 1 }, "with 'echo' and 'logprobs'"],
      [{ echo: true, logprobs: 1, prompt: [5] }, "with 'echo' and 'logprobs'"],
      [{ grammar: 'root ::= "a"' }, "a replay does not restrict tokens"],
    ] as const
  ) {
    for (const stream of [false, true]) {
      const body = { ...request, ...more, stream };
      const response = await server.post("/v1/completions", body);
      t.equal(response.status, 400);
      t.match(await response.text(), `Cannot use 'receipt': ${reason}`);
    }
  }
});

t.test("a receipt is replayed on other meshes, and differences are named", async (t) => {
  const { code, err } = await switchyard([
    ...["generate", checkpoint, "--adapter", "cpu", "--mesh", "ep=2"],
    ...["--wire", "fp8"],
    ...["-p", "Once upon a time", "-p", "The fox", "-n", "20"],
    ...["--temperature", "0.8", "--top-p", "0.9", "--seed", "4"],
    ...["--repeat-penalty", "1.1", "--receipt", file],
  ]);
  t.equal(code, 0, err);
  const text = readFileSync(file, "utf8");
  const receipt = JSON.parse(text) as Receipt;
  const equal = [0, "40 tokens and 6 rows of logits are equal"];
  for (const mesh of ["ep=1", "ep=4", "tp=2,ep=2"]) {
    t.strictSame(await replay("--mesh", mesh), equal, mesh);
  }
  await switchyard([
    ...["generate", checkpoint, "--adapter", "cpu", "--tokens", "5"],
    ...["-n", "1", "--receipt", file],
  ]);
  t.strictSame(await replay(), [0, "1 token and 1 row of logits are equal"]);
  const edited = async (edit: (receipt: Receipt) => unknown) => {
    const changed = structuredClone(receipt);
    edit(changed);
    writeFileSync(file, JSON.stringify(changed));
    return await replay();
  };
  const id = receipt.sequences[1]!.tokens[5]!;
  const [, found] = await edited(({ sequences }) =>
    (sequences[1]!.tokens as number[])[5] = (id + 1) % 2048
  );
  t.equal(
    found,
    `sequence 2: new token 6 is ${
      (id + 1) % 2048
    }, and ${id} when it is generated again`,
  );
  t.strictSame(
    await edited(({ sequences }) =>
      (sequences[0]!.logits as [number, string][])[1]![1] = "0".repeat(64)
    ),
    [1, "sequence 1: logits before new token 9 differ"],
  );
  const [seeded] = await edited(({ sequences }) => {
    for (const { sampling } of sequences) {
      (sampling as { seed: number }).seed = 5;
    }
  });
  t.equal(seeded, 1);
  const [broken, message] = await edited((receipt) =>
    (receipt as { sequences: unknown }).sequences = [{}]
  );
  t.equal(broken, 1);
  t.match(message, /^Cannot read the receipt '.*': .*\. Copy it again$/);
  writeFileSync(file, text);
  const weights = path.join(checkpoint, "model.safetensors");
  const bytes = readFileSync(weights);
  const header = JSON.parse(
    bytes.subarray(8, 8 + Number(bytes.readBigUInt64LE(0))).toString(),
  ) as { readonly [name: string]: { readonly data_offsets: number[] } };
  const [start] = header["model.layers.2.mlp.gate.weight"]!.data_offsets;
  const at = 8 + Number(bytes.readBigUInt64LE(0)) + start!;
  bytes[at]! ^= 1;
  writeFileSync(weights, bytes);
  const tokenizer = path.join(checkpoint, "tokenizer.json");
  writeFileSync(tokenizer, `${readFileSync(tokenizer, "utf8")}\n`);
  const [changed, differences] = await replay();
  t.equal(changed, 1);
  t.match(
    differences,
    /^tokenizer\.json differs\nweights of 'model\.layers\.2' differ/,
  );
});

t.test("elements of quantized weights are hashed", async (t) => {
  const hashes = async (folder: string) => {
    const weightFiles = await listWeightFiles(folder, files);
    return (await hashCheckpoint({ folder, weightFiles }, files)).weights;
  };
  const gguf = path.join(folder, "model.gguf");
  const { code } = await switchyard([
    ...["quantize", checkpoint, "--to", "q8_0", "--out", gguf],
  ]);
  t.equal(code, 0);
  const fp8 = await copyCheckpoint("deepseekv3-16e-fp8", folder);
  for (
    const [model, file, before] of [
      [gguf, gguf, await hashes(gguf)],
      [fp8, path.join(fp8, "model.safetensors"), await hashes(fp8)],
    ] as const
  ) {
    const bytes = readFileSync(file);
    // The last tensor of both files is quantized.
    bytes[bytes.length - 1]! ^= 1;
    writeFileSync(file, bytes);
    const after = await hashes(model);
    const changed = Object.keys(after).filter((block) =>
      after[block] !== before[block]
    );
    t.equal(changed.length, 1, `${path.basename(file)}: ${changed}`);
  }
});

t.test("fast numerics have no receipt", async (t) => {
  const { code, err } = await switchyard([
    ...["generate", checkpoint, "-p", "One", "--numerics", "fast"],
    ...["--receipt", file],
  ]);
  t.strictSame([code, err], [
    2,
    "Cannot use --receipt with --numerics fast: bits then depend on the mesh. Leave out one of them\n",
  ]);
});
