/** Policy gradients: exact log ratios between meshes, exact resumption, and the loss by its formula. */
// needs: cpu
// rotates with: engine/train/, models/policy.ts

import { spawn } from "node:child_process";
import { readFile, writeFile } from "node:fs/promises";
import path from "node:path";
import { createInterface } from "node:readline";
import t, { type Test } from "tap";
import { model, mul } from "../compiler/mod.ts";
import { evaluate } from "../compiler/graph/evaluate/evaluate.ts";
import { trace } from "../compiler/graph/trace.ts";
import { openTokenizer } from "../engine/checkpoint/checkpoint.ts";
import {
  adamw,
  type PolicyMetrics,
  type StepMetrics,
  trainPolicy,
  type TrainPolicyOptions,
} from "../engine/mod.ts";
import { PolicyMeter } from "../engine/train/policy_metrics.ts";
import { groupAdvantages } from "../engine/train/rollouts.ts";
import { LOGPROBS, POLICY_INPUTS } from "../models/policy.ts";
import { grpo, meanOf, type TokenValues } from "../models/mod.ts";
import { files, meshOf } from "./helpers/checkpoints.ts";
import { COMMAND } from "./helpers/compiled.ts";
import { switchyard, temporaryFolder } from "./helpers/cli.ts";
import { gradientsHold } from "./helpers/gradients.ts";
import { isInTurn, repeatWith } from "./helpers/seed.ts";
import { contents, TEXT, tinyModel } from "./helpers/tiny_training.ts";
import { waves } from "./helpers/waves.ts";

/** Creates a small checkpoint with weights, prompts and a reward. */
async function tinyPolicy(t: Test) {
  const folder = temporaryFolder(t);
  const at = (name: string) => path.join(folder, name);
  const { code, err } = await switchyard([
    ...["train", await tinyModel(t), "--data", TEXT, "--steps", "1"],
    ...["--batch", "2", "--length", "16", "--adapter", "cpu"],
    ...["--out", at("start")],
  ]);
  t.equal(code, 0, err);
  await writeFile(at("prompts.txt"), "Once upon a time\nThe king\nA wolf\n");
  await writeFile(
    at("reward.ts"),
    "export const reward = async (prompt: string, text: string) =>\n  text.length - prompt.length;\n",
  );
  return { at, start: at("start") };
}

interface Record {
  readonly step: number;
  readonly loss: number;
  readonly saved: boolean;
  readonly parts: { readonly kl: number };
  readonly policy: PolicyMetrics;
}

t.test("the command line: on-policy bits between meshes, kill -9 and resumption", async (t) => {
  const { at, start } = await tinyPolicy(t);
  const argv = (out: string, ...more: string[]) => [
    ...["train", start, "--reward", at("reward.ts"), "--samples", "4"],
    ...["--prompts", at("prompts.txt"), "--batch", "4", "--accumulate", "2"],
    ...["--length", "24", "--max-new-tokens", "8", "--lr", "0.01"],
    ...["--kl", "0.1", "--adapter", "cpu", "--mesh", "dp=2,ep=2"],
    ...["--rollout-mesh", "ep=4", "--steps", "4", "--decay", "4"],
    ...["--out", at(out), "--json", ...more],
  ];
  const run = async (...args: Parameters<typeof argv>) => {
    const { code, out, err } = await switchyard(argv(...args));
    t.equal(code, 0, err);
    return out.trim().split("\n").map((line) => JSON.parse(line) as Record);
  };
  const straight = await run("straight");
  t.same(straight.map(({ policy }) => policy.logRatio), [0, 0, 0, 0]);
  t.ok(straight.every(({ saved }) => saved), "each step is saved");
  t.ok(straight.every(({ policy }) => policy.movedBytes > 0));
  t.ok(straight.every(({ policy }) => policy.length > 1));
  const kl = straight.map(({ parts }) => parts.kl);
  t.equal(kl[0], 0, "the first samples come from the initial model");
  t.ok(kl.slice(1).every((value) => value > 0), `${kl}`);

  const killed = spawn(process.execPath, [COMMAND, ...argv("killed")], {
    stdio: ["ignore", "pipe", "ignore"],
  });
  let seen = 0;
  for await (const _ of createInterface(killed.stdout)) {
    if (++seen === 2) killed.kill("SIGKILL");
  }
  const index = JSON.parse(
    await readFile(
      path.join(at("killed"), "model.safetensors.index.json"),
      "utf8",
    ),
  );
  const { step } = index.metadata.training;
  t.ok(step >= seen - 1, `after ${seen} steps, ${step} are saved`);
  await run("killed", "--resume");
  const same = async (...folders: readonly [string, string]) => {
    const [found, wanted] = await Promise.all(
      folders.map((folder) => contents(at(folder))),
    ) as [Contents, Contents];
    t.same(Object.keys(found), Object.keys(wanted));
    for (const name of Object.keys(wanted)) {
      t.ok(found[name] === wanted[name], name);
    }
  };
  await same("killed", "straight");

  // test/mpi/train.test.ts trains adapters in the other runs.
  if (!isInTurn(1, 2)) {
    return t.comment(`No adapters in this rotation. ${repeatWith()}`);
  }
  // With adapters; the last flag of a kind counts.
  const lora = ["--lora", "rank=2,targets=attention+experts", "--steps"];
  const [, second] = await run("adapters", ...lora, "2");
  t.equal(second!.policy.logRatio, 0);
  t.ok(second!.policy.movedBytes < straight[1]!.policy.movedBytes);
  for (
    const [policy, adapters] of [
      [straight[1]!.policy, []],
      [second!.policy, lora.slice(0, 2)],
    ] as const
  ) {
    const planned = await switchyard([
      ...["plan", start, "--train", "--mesh", "dp=2,ep=2", "--json"],
      ...["--rollout-mesh", "ep=4", ...adapters],
    ]);
    const { rollouts } = JSON.parse(planned.out);
    t.equal(rollouts.moved, policy.movedBytes, "planned bytes are moved");
  }
  await run("resumed", ...lora, "1");
  await run("resumed", ...lora, "2", "--resume");
  await same("resumed", "adapters");
  await run("fast", ...lora, "1", "--numerics", "fast");
  const generated = await switchyard([
    ...["generate", start, "--lora", at("adapters"), "-p", "A", "-n", "2"],
    ...["--adapter", "cpu"],
  ]);
  t.equal(generated.code, 0, generated.err);
});

type Contents = Awaited<ReturnType<typeof contents>>;

t.test("from a program: shared memory, other rollout meshes, several updates, custom losses", async (t) => {
  const { start } = await tinyPolicy(t);
  const tokenizer = (await openTokenizer(start, files))!;
  const prompts = await Promise.all(
    ["The king", "A wolf"].map(async (text) => ({
      text,
      tokens: await tokenizer.encode(text),
    })),
  );
  tokenizer.close();
  const run = async (
    mesh: string,
    more: Partial<TrainPolicyOptions>,
  ): Promise<StepMetrics[]> => {
    const steps: StepMetrics[] = [];
    const metrics = trainPolicy(start, files, {
      prompts,
      samples: 4,
      batch: 8,
      length: 16,
      maxNewTokens: 8,
      reward: (_, text) => text.length,
      schedule: { rate: 0.01 },
      optimizer: adamw(),
      steps: 2,
      mesh: meshOf(mesh),
      adapter: "cpu",
      now: () => performance.now(),
      ...more,
    });
    for await (const step of metrics) steps.push(step);
    return steps;
  };
  const [first] = await run("ep=2", { steps: 1 });
  t.equal(first!.policy!.movedBytes, 0, "weights are shared");
  const updated = await run("ep=1", {
    rolloutMesh: meshOf("tp=2"),
    updates: 2,
    batch: 4,
  });
  const { movedBytes, ...figures } = updated[0]!.policy!;
  t.ok(movedBytes > 0);
  t.same(
    { ...figures, movedBytes: 0 },
    first!.policy,
    "rollouts have the same bits on any mesh",
  );
  t.equal(updated[0]!.policy!.logRatio, 0);
  t.ok(updated[1]!.policy!.logRatio > 0, "the second update is off-policy");

  const other = await run("ep=1", {
    steps: 1,
    rolloutNumerics: { kvCacheDtype: "bf16" },
    loss: ({ logprobs, advantages, mask }) => ({
      loss: meanOf(mul(mul(logprobs, advantages), -1), mask),
      surprise: meanOf(logprobs, mask),
    }),
  });
  t.ok(other[0]!.policy!.logRatio > 0, "other numerics have other bits");
  t.ok(other[0]!.parts["surprise"]! < 0);

  const lora = { rank: 2, alpha: 4, targets: ["attention", "experts"] };
  const adapting = { lora, kl: 0.1, schedule: { rate: 0.1 } };
  const adapted = await run("ep=2", adapting);
  t.equal(adapted[0]!.policy!.movedBytes, 0, "weights are shared");
  t.equal(adapted[0]!.parts["kl"], 0, "initial adapters have no effect");
  t.ok(adapted[1]!.parts["kl"]! > 0);
  for (const { policy } of adapted) t.equal(policy!.logRatio, 0);

  await t.rejects(run("ep=1", { samples: 3 }), {
    message: /^Cannot compare 3 samples of a prompt in steps of 8 samples/,
  });
  await t.rejects(run("ep=1", { maxNewTokens: 16 }), {
    message:
      /^Cannot train on prompt 1: its \d+ tokens and 16 new ones are more than 16/,
  });
  await t.rejects(run("ep=1", { reward: () => NaN }), {
    message: /^Cannot use the reward of a response to "[^"]+": it is NaN/,
  });
});

t.test("log ratios are asserted with exact numerics and reported otherwise", (t) => {
  const column = (...values: number[]) => ({
    dtype: "f32" as const,
    shape: [values.length],
    data: Float32Array.from(values),
  });
  const observed = (exact: boolean, onPolicy: boolean) => {
    const meter = new PolicyMeter({ exact });
    meter.begin({ rewards: [1, 2], rollouts: [], movedBytes: 3 });
    meter.give({
      [POLICY_INPUTS.old]: column(-1, -2, -3),
      [POLICY_INPUTS.mask]: column(0, 1, 1),
    }, { onPolicy });
    return meter.observe([{ [LOGPROBS]: column(-9, -2, -3.25) }]);
  };
  t.match(observed(false, true), { logRatio: 0.25, movedBytes: 3 });
  t.match(observed(true, false), { logRatio: 0.25 });
  t.throws(() => observed(true, true), {
    message: /differ by 0\.25 between rollouts and training, and must be equal/,
  });
  t.end();
});

t.test("grpo() matches its formula", async (t) => {
  const count = 12;
  const loss = grpo({ clip: 0.1, clipHigh: 0.3, kl: 0.5 });
  const policy = model({ token: count, vocab: 1, sequence: 1 }, (m) => {
    const value = (name: string) => m.input(name, "token");
    return loss({
      logprobs: m.param("logprobs", "token") as TokenValues,
      old: value("old"),
      advantages: value("advantages"),
      reference: value("reference"),
      mask: value("mask"),
    }, m);
  });
  const inputs = {
    old: waves(count, 1),
    reference: waves(count, 2),
    advantages: waves(count, 3).map((x) => 2 * x),
    mask: waves(count, 4).map((_, i) => i % 4 === 1 ? 0 : 1),
  };
  const logprobs = waves(count, 5);
  const { outputs } = evaluate(trace(policy), {
    inputs,
    params: { logprobs },
    precision: "f64",
  });
  let [gain, divergence, tokens] = [0, 0, 0];
  for (let i = 0; i < count; i++) {
    if (inputs.mask[i] === 0) continue;
    tokens++;
    const ratio = Math.exp(logprobs[i]! - inputs.old[i]!);
    const advantage = inputs.advantages[i]!;
    const clipped = Math.min(1.3, Math.max(0.9, ratio));
    gain += Math.min(ratio * advantage, clipped * advantage);
    const off = inputs.reference[i]! - logprobs[i]!;
    divergence += Math.exp(off) - off - 1;
  }
  const wanted = (0.5 * divergence - gain) / tokens;
  t.ok(Math.abs(outputs["loss"]!.data[0]! - wanted) < 1e-6);
  t.ok(Math.abs(outputs["kl"]!.data[0]! - divergence / tokens) < 1e-6);
  await gradientsHold(t, { model: policy, inputs, params: { logprobs } });
  t.same(groupAdvantages([1, 1, 3, 5], 2).map((a) => Math.round(1e3 * a)), [
    0,
    0,
    -707,
    707,
  ]);
});
