/** Training that a model file declares: from the command line and the engine, with metrics and plots. */
// needs: cpu
// rotates with: engine/train/, cli/training_, cli/step_record.ts, view/pictures/chart.ts

import { readFile, writeFile } from "node:fs/promises";
import path from "node:path";
import t from "tap";
import { nodeFiles } from "../cli/files.ts";
import type { StepRecord } from "../cli/step_record.ts";
import { lossOf } from "../cli/training_metrics.ts";
import { ticks } from "../view/pictures/chart.ts";
import { figureSvg, loadOverSteps } from "../view/mod.ts";
import { trace } from "../compiler/mod.ts";
import { evaluate } from "../compiler/graph/evaluate/evaluate.ts";
import {
  loadTrainingFile,
  randomNumbers,
  readTraining,
  runTraining,
  type StepMetrics,
} from "../engine/mod.ts";
import { publishedModel } from "../models/published.ts";
import { switchyard, temporaryFolder } from "./helpers/cli.ts";

const FILE = path.resolve(
  import.meta.dirname,
  "../examples/train/next_byte.ts",
);

function readLines(text: string): StepRecord[] {
  return text.trim().split("\n").map((line) => JSON.parse(line) as StepRecord);
}

t.test("a training of a file, interrupted and resumed", async (t) => {
  const folder = temporaryFolder(t);
  const argv = (out: string, ...more: string[]) => [
    ...["train", FILE, "--adapter", "cpu", "--out", path.join(folder, out)],
    ...more,
  ];
  const complete = await switchyard(argv("whole", "--steps", "20", "--json"));
  t.match(complete, { code: 0, err: "" });
  const records = readLines(complete.out);
  t.same(records.map(({ step }) => step), [...Array(20)].map((_, i) => i + 1));
  t.ok(
    Math.abs(records[0]!.ceLoss - Math.log(256)) < 0.2,
    "the initial loss is that of a uniform distribution",
  );
  t.ok(records[19]!.ceLoss < 4.2, `loss ${records[19]!.ceLoss}`);
  for (const { expertLoad, sentBytes, tokens, loss } of records) {
    const [layer] = expertLoad;
    t.equal(Math.round(layer!.reduce((n, share) => n + share, 0) * 100), 100);
    t.ok(sentBytes > 0, "two ranks exchange");
    t.equal(tokens, 256);
    t.ok(Number.isFinite(loss));
  }
  const read = (out: string, name: string) =>
    readFile(path.join(folder, out, name), "utf8");
  t.same(readLines(await read("whole", "metrics.jsonl")), records);

  await switchyard(argv("parts", "--steps", "8"));
  // Lines of steps that were executed but not saved; the last one is truncated.
  const metrics = path.join(folder, "parts", "metrics.jsonl");
  const before = await readFile(metrics, "utf8");
  const later = JSON.stringify({ ...records[8], loss: -1 });
  await writeFile(metrics, `${before}${later}\n${later.slice(0, 40)}`);
  const rest = await switchyard(argv("parts", "--steps", "20", "--resume"));
  t.match(rest, { code: 0, out: /Wrote/ });
  const untimed = (text: string) =>
    readLines(text).map(({ tokensPerSecond: _, saved: __, ...rest }) => rest);
  t.same(
    untimed(await read("parts", "metrics.jsonl")),
    untimed(complete.out),
    "the lines of an uninterrupted training",
  );
  for (const name of ["loss.svg", "experts.svg"]) {
    t.equal(await read("parts", name), await read("whole", name), name);
  }
  const saved = await readTraining(path.join(folder, "parts"), nodeFiles());
  t.equal(saved.step, 20);

  t.match(await switchyard(argv("new", "--steps", "1", "--lr", "1")), {
    code: 2,
    err: /Cannot use --lr with a model file: the file says how it is trained/,
  });
  t.match(await switchyard(argv("new", "--steps", "1", "--data", FILE)), {
    code: 2,
    err: /Cannot use --data with a model file: the file defines the training/,
  });
});

t.test("training through the engine", async (t) => {
  const training = await loadTrainingFile(`${FILE}#training`);
  const run = async (mesh: { readonly [axis: string]: number }) => {
    const found: StepMetrics[] = [];
    const validation = training.data;
    for await (
      const step of runTraining(
        { ...training, mesh, validation, validationBatches: 2 },
        nodeFiles(),
        {
          steps: 3,
          sharing: "shared",
          adapter: "cpu",
          validateEvery: 2,
          now: () => performance.now(),
        },
      )
    ) found.push(step);
    return found;
  };
  const [one, two] = [await run({ ep: 1 }), await run({ ep: 2 })];
  t.same(one.map(({ validation }) => validation !== undefined), [
    ...[false, true, true],
  ]);
  t.equal(two.length, one.length, "the same number of steps");
  for (const [i, { loss, validation }] of two.entries()) {
    t.ok(Math.abs(loss / one[i]!.loss - 1) < 1e-5, `loss ${loss}`);
    if (validation === undefined) continue;
    t.ok(Math.abs(validation / one[i]!.validation! - 1) < 1e-5);
  }
  // After the last step, validation uses the first two training batches, which have been seen.
  t.ok(one[2]!.validation! < one[1]!.crossEntropy, "the loss falls");
  await t.rejects(loadTrainingFile(`${FILE}#nextByte`), {
    message:
      "Cannot find training 'nextByte' in 'next_byte.ts': it exports 'training'. Name one of those",
  });
});

t.test("plots of a training", (t) => {
  const records = Array.from({ length: 500 }, (_, i): StepRecord => ({
    step: i + 1,
    loss: 6 - i / 250,
    ceLoss: 6 - i / 250,
    auxLoss: 1,
    validationLoss: i % 100 === 99 ? 5 : null,
    learningRate: 1,
    gradientNorm: 1,
    tokens: 1,
    tokensPerSecond: 1,
    expertLoad: [[0.5, 0.5], [1, 0]],
    sentBytes: 0,
    memoryBytes: 0,
    saved: false,
  }));
  const curve = figureSvg(lossOf(records));
  t.match(curve, /^<svg .*<\/svg>$/s);
  t.equal(curve.match(/in validation/g)?.length, 5, "a dot per validation");
  t.match(curve, /validation, at last 5\.000/);
  t.match(curve, />Cross-entropy loss, nats per token</);
  t.match(curve, />exponential mean of 25 steps</);
  t.match(curve, />step</);
  const map = figureSvg(loadOverSteps(records, 720)!);
  t.match(
    map,
    /opacity="0" fill="var\(--attention\)"/,
    "an equal share is white",
  );
  t.match(map, /opacity="1" fill="var\(--attention\)"/, "no load is blue");
  t.match(
    map,
    /opacity="0.5" fill="var\(--combine\)"/,
    "twice the equal share is orange",
  );
  t.match(map, />layer 1</);
  t.match(map, />Load of each expert, as a multiple of a fair share</);
  const numbers = (experts: number) => {
    const load = [Array<number>(experts).fill(1 / experts)];
    const drawn = figureSvg(
      loadOverSteps(records.map((r) => ({ ...r, expertLoad: load })), 720)!,
    );
    return [...drawn.matchAll(/font-size="9"[^>]*>(\d+)</g)].map(([, n]) => n);
  };
  t.same(numbers(4), ["0", "1", "2", "3"]);
  t.same(numbers(256).slice(0, 3), ["0", "5", "10"], "numbers are spaced");
  t.equal(
    loadOverSteps(records.map((r) => ({ ...r, expertLoad: [] })), 720),
    undefined,
  );
  t.same(ticks(0, 500, 8), [0, 100, 200, 300, 400, 500]);
  t.same(ticks(3, 5, 8), [3, 3.5, 4, 4.5, 5]);
  t.end();
});

t.test("experts balanced per layer, or over all layers together", (t) => {
  const config = {
    architectures: ["OlmoeForCausalLM"],
    vocab_size: 32,
    hidden_size: 16,
    intermediate_size: 8,
    num_hidden_layers: 3,
    num_experts: 4,
    num_experts_per_tok: 2,
    num_attention_heads: 2,
    num_key_value_heads: 2,
    rms_norm_eps: 1e-5,
    max_position_embeddings: 64,
    tie_word_embeddings: true,
  };
  const [tokens, experts, layers] = [24, 4, 3];
  const row = (of: (i: number) => number) =>
    Array.from({ length: tokens }, (_, i) => of(i));
  const lossesOf = (balance: "layer" | "together") => {
    const graph = trace(
      publishedModel(config).build({
        maxTokens: tokens,
        maxSequences: 1,
        maxContext: tokens,
        training: { auxiliary: 0.5, balance },
      }),
    );
    const sizes = new Map(
      Object.entries(graph.axes).map(([name, { size }]) => [name, size]),
    );
    const random = randomNumbers(1, 0);
    const params = Object.fromEntries(
      graph.nodes.filter((node) => node.primitive === "param").map((node) => [
        node.params.name,
        Array.from(
          { length: node.axes.reduce((n, axis) => n * sizes.get(axis)!, 1) },
          () => 2 * random() - 1,
        ),
      ]),
    );
    const { outputs } = evaluate(graph, {
      inputs: {
        ids: row((i) => i * 7 % 32),
        labels: row((i) => i * 5 % 32),
        sequence: row(() => 0),
        position: row((i) => i),
      },
      params,
    });
    return outputs;
  };
  /** Number of experts times the sum of products of choice and probability shares, over some layers. */
  const balanced = (outputs: ReturnType<typeof lossesOf>, of: number[]) => {
    const [chosen, wanted] = [new Float64Array(4), new Float64Array(4)];
    for (const layer of of) {
      for (const e of outputs[`layer${layer}.topk_idx`]!.data) chosen[e]!++;
      const { data } = outputs[`layer${layer}.router_logits`]!;
      for (let i = 0; i < data.length; i += experts) {
        const powers = [...data.subarray(i, i + experts)].map(Math.exp);
        const sum = powers.reduce((a, b) => a + b);
        powers.forEach((power, e) => wanted[e]! += power / sum);
      }
    }
    const rows = tokens * of.length;
    return chosen.reduce((sum, n, e) => sum + n * wanted[e]!, 0) * experts /
      rows ** 2;
  };
  const all = Array.from({ length: layers }, (_, layer) => layer);
  const [apart, together] = [lossesOf("layer"), lossesOf("together")];
  const expected = {
    apart: all.reduce((sum, l) => sum + balanced(apart, [l]), 0) / layers,
    together: balanced(together, all),
  };
  t.ok(expected.apart > expected.together + 1e-3, "the losses differ");
  const near = (value: number, wanted: number) =>
    t.ok(Math.abs(value / wanted - 1) < 1e-5, `${value}, wanted ${wanted}`);
  near(apart["aux_loss"]!.data[0]!, expected.apart);
  near(together["aux_loss"]!.data[0]!, expected.together);
  const { loss, ce_loss } = apart;
  near(loss!.data[0]!, ce_loss!.data[0]! + 0.5 * expected.apart);
  t.end();
});
