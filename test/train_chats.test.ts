/** Fine-tuning on conversations: trained tokens, packing, the loss in plain arithmetic, and a resumed run. */
// needs: cpu
// rotates with: engine/train/, models/losses.ts

import { readFile, writeFile } from "node:fs/promises";
import path from "node:path";
import t, { type Test } from "tap";
import { compileGraph } from "../compiler/compile.ts";
import { evaluate } from "../compiler/graph/evaluate/evaluate.ts";
import { trace } from "../compiler/graph/trace.ts";
import { openTokenizer } from "../engine/checkpoint/checkpoint.ts";
import { openChats, type OpenChatsOptions } from "../engine/mod.ts";
import { randomNumbers } from "../engine/generation/sampling.ts";
import {
  inputsOf,
  type Sample,
  SampleBatches,
  weightOf,
} from "../engine/train/samples.ts";
import { weightedTokens } from "../models/losses.ts";
import type { Config } from "../models/mod.ts";
import { publishedModel } from "../models/published.ts";
import { createCpuDevice } from "../runtime/cpu/mod.ts";
import { createSession, openSafetensors } from "../runtime/mod.ts";
import { checkpointFolder, files } from "./helpers/checkpoints.ts";
import { copyCheckpoint, switchyard, temporaryFolder } from "./helpers/cli.ts";
import { readJson, readTensors } from "./helpers/read_tensors.ts";
import { inTurn, repeatWith, SEED } from "./helpers/seed.ts";
import { contents, tinyModel } from "./helpers/tiny_training.ts";

/** A typical published template. */
const TEMPLATE = `{% for message in messages %}
  {%- if message.role == 'assistant' %}
<|assistant|>
{{ message.content | trim }}{{ eos_token }}
  {%- else %}
<|{{ message.role }}|>
{{ message.content }}
  {%- endif %}
{% endfor %}
{% if add_generation_prompt %}
<|assistant|>
{% endif %}`;

/** The same with generation blocks around the assistant's text. */
const MARKED = TEMPLATE.replace(
  "{{ message.content | trim }}{{ eos_token }}\n  {%- else",
  "{% generation %}\n{{- message.content | trim }}{{ eos_token }}\n{%- endgeneration %}\n  {%- else",
);

/** A template that shows reasoning for the last turn only. */
const FORGETFUL = TEMPLATE.replace(
  "{{ message.content | trim }}",
  "{{ 'Hm. ' if loop.last else '' }}{{ message.content | trim }}",
);

const say = (role: string, content: string, more: object = {}) => ({
  role,
  content,
  ...more,
});

const CHATS = [
  [
    say("system", "Be brief."),
    say("user", "Who was the king?"),
    say("assistant", "An old man."),
    say("user", "And the queen?"),
    say("assistant", "She was young, and said nothing."),
  ],
  [say("user", "Went the wolf?"), say("assistant", "Into the wood.")],
  [say("user", "Who asks?")],
];

const LINES = CHATS.map((messages) => JSON.stringify({ messages })).join("\n");

async function withTemplate(t: Test, template: string): Promise<string> {
  const folder = await copyCheckpoint("demo-lm", temporaryFolder(t));
  await writeFile(path.join(folder, "chat_template.jinja"), template);
  return folder;
}

const open = (folder: string, more: Partial<OpenChatsOptions> = {}) =>
  openChats(folder, files, {
    data: [{ name: "chats.jsonl", text: () => [LINES] }],
    length: 100,
    ...more,
  });

t.test("the assistant's tokens are trained, including the stop token", async (t) => {
  const folder = await withTemplate(t, TEMPLATE);
  const { samples, report } = await open(folder);
  const tokenizer = (await openTokenizer(folder, files))!;
  t.teardown(() => tokenizer.close());
  const trained = await Promise.all(
    samples.map(({ ids, weights }) =>
      tokenizer.decodeAll([...ids].filter((_, i) => weights[i]! > 0))
    ),
  );
  const end = "<|endoftext|>";
  t.same(trained, [
    `An old man.${end}She was young, and said nothing.${end}`,
    `Into the wood.${end}`,
  ]);
  t.match(report, { samples: 2, untrained: 1, truncated: 0, lost: 0 });
  const all = await open(folder, { trainOn: "all" });
  t.equal(all.samples.length, 3);
  t.ok(all.samples.every(({ weights }) => weights.every((w) => w === 1)));

  const marked = await open(await withTemplate(t, MARKED));
  t.equal(
    marked.digest,
    (await open(folder)).digest,
    "generation blocks select the same tokens",
  );

  const { length } = samples[0]!.ids;
  const short = await open(folder, { length: length - 6 });
  t.equal(short.samples[0]!.ids.length, length - 5);
  t.match(short.report, { truncated: 1, lost: 5 });
  const { samples: most, validation } = await open(folder, { split: 0.5 });
  t.same([most.length, validation.length], [1, 1]);
});

t.test("weights, and rejected conversations", async (t) => {
  const folder = await withTemplate(t, TEMPLATE);
  const from = (text: string, template = folder) =>
    open(template, { data: [{ name: "f", text: () => [text] }] });
  const line = (...messages: object[]) => JSON.stringify({ messages });
  const { samples: [sample] } = await from(
    line(
      say("user", "a"),
      say("assistant", "b", { weight: 0 }),
      say("user", "c"),
      say("assistant", "d", { weight: 0.5 }),
    ),
  );
  t.same([...new Set(sample!.weights)].sort(), [0, 0.5]);
  const cannot = "Cannot find the assistant's text in f:1";
  await t.rejects(
    from(line(...CHATS[0]!), await withTemplate(t, FORGETFUL)),
    {
      message:
        `${cannot}: the chat template renders message 3 differently when others follow it. Use a template with {% generation %} blocks, or --train-on all`,
    },
  );
  const one =
    'Give one conversation per line, {"messages": [{"role": "user", "content": "…"}, …]}';
  await t.rejects(from("\n{]"), {
    message: `Cannot read f:2: it is not JSON. ${one}`,
  });
  await t.rejects(from('{"text": "a"}'), {
    message: `Cannot read f:1: it has no list 'messages'. ${one}`,
  });
  await t.rejects(from(line(say("user", "a"), { content: "b" })), {
    message: `Cannot read f:1: message 2 has no role. ${one}`,
  });
  await t.rejects(from(line(say("assistant", "a", { weight: -1 }))), {
    message:
      "Cannot train on f:1: the weight of message 1 is -1. Give a number of at least 0",
  });
  await t.rejects(from(line(say("user", "a"))), {
    message:
      "Cannot train on the conversations: none of 1 has trained tokens. Check the roles of messages and --length",
  });
});

t.test("every sample is in one batch of an epoch", (t) => {
  const random = randomNumbers(SEED, 1);
  const samples = Array.from({ length: 50 }, (_, i): Sample => {
    const length = 2 + Math.floor(20 * random());
    const ids = new Int32Array(length).fill(i);
    return { ids, weights: new Float32Array(length).fill(1) };
  });
  const batches = new SampleBatches(samples, {
    tokens: 40,
    sequences: 4,
    seed: 3,
  });
  const orders = [0, 1].map((epoch) => {
    const from = batches.count(epoch);
    const order: number[] = [];
    for (let at = from; at < batches.count(epoch + 1); at++) {
      const batch = batches.at(at);
      const tokens = batch.reduce((n, { ids }) => n + ids.length - 1, 0);
      t.ok(batch.length <= 4 && tokens <= 40, `${batch.length}, ${tokens}`);
      order.push(...batch.map(({ ids }) => ids[0]!));
    }
    t.same(order.toSorted((a, b) => a - b), samples.map((_, i) => i));
    return order.join();
  });
  t.not(orders[0], orders[1], "each epoch has its own order");
  t.end();
});

/** A checkpoint of each kind of router: score, groups, bias, order of softmax and choice. */
const ROUTERS = [
  "mixtral-8e",
  "olmoe-16e",
  "qwen3moe-16e",
  "deepseekv2-16e",
  "deepseekv3-16e",
  "gptoss-8e",
  "llama4-8e",
  "ernie45moe-16e",
];

const ALL = process.env["ON_POLICY"] === "all";

for (const name of ALL ? ROUTERS : inTurn(ROUTERS, ROUTERS.length)) {
  t.test(`${name}: the loss is the same packed, alone and in double precision`, async (t) => {
    t.comment(repeatWith());
    const vocabulary = Number(
      (readJson(`${name}/config.json`) as Config)["vocab_size"],
    );
    const random = randomNumbers(SEED, 2);
    const samples = [9, 4, 7].map((length): Sample => ({
      ids: Int32Array.from(
        { length },
        () => Math.floor(random() * vocabulary),
      ),
      weights: Float32Array.from(
        { length },
        (_, i) => i < length / 3 ? 0 : i % 2 === 0 ? 1 : 0.25,
      ),
    }));
    const model = publishedModel(readJson(`${name}/config.json`) as Config)
      .build({
        maxTokens: 24,
        maxSequences: 3,
        maxContext: 16,
        training: { auxiliary: 0.01, objective: weightedTokens },
      });
    const graph = trace(model);
    const plan = await compileGraph(graph, { mesh: { dp: 2, ep: 2 } });
    const device = await createCpuDevice();
    t.teardown(() => device.destroy());
    const file = `${checkpointFolder(name)}/model.safetensors`;
    const opened = await files.open(file);
    const session = await createSession(plan, {
      devices: new Array(plan.ranks).fill(device),
      tensors: await openSafetensors([{ name: file, ...opened }]),
    });
    await opened.close();
    const lossOf = async (some: readonly Sample[]) => {
      const inputs = inputsOf(some, { weighted: true });
      const options = { outputs: ["ce_loss"], fresh: true };
      const { ce_loss } = await session.run("main", inputs, options);
      return ce_loss!.data[0]!;
    };
    const packed = await lossOf(samples);
    let [alone, plain, total] = [0, 0, 0];
    for (const sample of samples) {
      const weight = weightOf([sample]);
      alone += weight * await lossOf([sample]);
      plain += plainLoss(name, graph, sample);
      total += weight;
    }
    t.ok(
      Math.abs(packed - alone / total) < 1e-5,
      `${packed}, alone ${alone / total}`,
    );
    t.ok(
      Math.abs(packed - plain / total) < 2e-5,
      `${packed}, in f64 ${plain / total}`,
    );
  });
}

/** The weighted sum of cross-entropies of a sample, from logits in double precision. */
function plainLoss(
  name: string,
  graph: ReturnType<typeof trace>,
  sample: Sample,
): number {
  const count = sample.ids.length - 1;
  const { outputs } = evaluate(graph, {
    inputs: {
      ids: [...sample.ids.subarray(0, count)],
      sequence: new Array(count).fill(0),
      position: Array.from({ length: count }, (_, i) => i),
      labels: new Array(count).fill(-100),
      weights: new Array(count).fill(0),
    },
    params: readTensors(`${name}/model.safetensors`),
    precision: "f64",
  });
  const logits = outputs["logits"]!.data;
  const width = logits.length / count;
  let sum = 0;
  for (let i = 0; i < count; i++) {
    const row = [...logits.slice(i * width, (i + 1) * width)];
    const all = Math.log(row.reduce((n, x) => n + Math.exp(x), 0));
    sum += sample.weights[i + 1]! * (all - row[sample.ids[i + 1]!]!);
  }
  return sum;
}

t.test("a training on conversations resumes with the same bits", async (t) => {
  const model = await tinyModel(t);
  await writeFile(path.join(model, "chat_template.jinja"), TEMPLATE);
  const folder = temporaryFolder(t);
  const data = path.join(folder, "chats.jsonl");
  const random = randomNumbers(1, 1);
  const words = "king queen old young said went wood wolf".split(" ");
  const some = () =>
    Array.from(
      { length: 1 + Math.floor(9 * random()) },
      () => words[Math.floor(random() * words.length)],
    ).join(" ");
  const lines = Array.from({ length: 20 }, () =>
    JSON.stringify({
      messages: [say("user", some()), say("assistant", some())],
    }));
  await writeFile(data, lines.join("\n"));
  const train = async (out: string, ...more: string[]) => {
    const { code, out: text, err } = await switchyard([
      ...["train", model, "--data", data, "--out", path.join(folder, out)],
      ...["--adapter", "cpu", "--mesh", "dp=2,ep=2", "--batch", "2"],
      ...["--length", "24", "--validate-split", "0.1", ...more],
    ]);
    t.equal(code, 0, err);
    return { text, err };
  };
  const { err } = await train("straight", "--epochs", "2");
  t.match(
    err,
    /15 conversations, 2 for validation: \d+ tokens, \d+ of them trained; 12 truncated to 24 tokens \(58 tokens lost\); 3 left out/,
  );
  await train("stopped", "--steps", "3", "--decay", "16");
  const { text } = await train("stopped", "--steps", "16", "--resume");
  t.match(text, /validation/);
  const index = JSON.parse(
    await readFile(
      path.join(folder, "straight", "model.safetensors.index.json"),
      "utf8",
    ),
  );
  t.equal(index.metadata.training.step, 16, "steps of two epochs");
  const [stopped, straight] = [
    await contents(path.join(folder, "stopped")),
    await contents(path.join(folder, "straight")),
  ];
  t.same(Object.keys(stopped), Object.keys(straight));
  for (const [name, bytes] of Object.entries(straight)) {
    t.ok(stopped[name] === bytes, name);
  }
});
