// Unknown options of the library's functions, from callers without types.
// needs: cpu

import t from "tap";
import { nodeFiles } from "../cli/files.ts";
import {
  adamw,
  compile,
  compileTraining,
  dot,
  mean,
  model,
  mul,
  sgd,
  train,
} from "../compiler/mod.ts";
import {
  openModel,
  quantizeCheckpoint,
  runTraining,
  trainCheckpoint,
  trainPolicy,
} from "../engine/mod.ts";
import { checkpointFolder } from "./helpers/checkpoints.ts";
import { temporaryFolder } from "./helpers/cli.ts";

const files = nodeFiles();
const folder = checkpointFolder("demo-lm");

/** The error for an unknown option. */
const unknown = (task: string, name: string, remedy: string) => ({
  name: "DataError",
  message: new RegExp(
    `^Cannot ${task} with option '${name}': it is unknown\\. ${remedy}$`,
  ),
});

t.test("openModel", async (t) => {
  const opening = openModel(folder, files, { thread: 2 } as object);
  await t.rejects(
    opening,
    unknown("open a model", "thread", "Write 'threads'"),
  );
  await t.rejects(
    openModel(folder, files, { bananas: 2 } as object),
    unknown(
      "open a model",
      "bananas",
      "Options are family, mesh, .*, threads, .*",
    ),
  );
});

t.test("run and generate of a model", async (t) => {
  const model = await openModel(folder, files, {
    family: undefined,
    adapter: "cpu",
    mesh: { ep: 2 },
  });
  await t.rejects(
    model.generate("Once", { max_new_tokens: 5 } as object),
    unknown("generate text", "max_new_tokens", "Write 'maxNewTokens'"),
  );
  await t.rejects(
    model.run({}, { replays: {} } as object),
    unknown("run a model", "replays", "Write 'replay'"),
  );
  t.type(await model.generate("Once", { maxNewTokens: 2 }), "string");
  await model.close();
});

/** The mean of squares of a line. */
const line = model({ token: 4, input: 2 }, (m) => {
  const y = dot(m.input("x", "token input"), m.param("w", "input"), "input");
  return { loss: mean(mul(y, y), "token") };
});

t.test("compile and compileTraining", async (t) => {
  await t.rejects(
    compile(line, { Mesh: { ep: 2 } } as object),
    unknown("compile a model", "Mesh", "Write 'mesh'"),
  );
  await t.rejects(
    compile(line, { pages: { size: 4, counts: 8 } as never }),
    unknown("compile a paged KV cache", "counts", "Write 'count'"),
  );
  const tuning = { tuning: { splitkeys: 4 } as object };
  const misspelt = unknown("tune kernels", "splitkeys", "Write 'splitKeys'");
  await t.rejects(compile(line, tuning), misspelt);
  await t.rejects(
    compileTraining(line, { loss: "loss", optimizer: sgd(), ...tuning }),
    misspelt,
  );
  const mesh = { mesh: { dp: 2 }, place: { token: "dp" } };
  t.ok(await compile(line, { ...mesh, chunks: 1 }));
  const options = { loss: "loss", optimizer: sgd() };
  const training = { ...options, clip_norm: 1 };
  await t.rejects(
    compileTraining(line, training),
    unknown("compile a training step", "clip_norm", "Write 'clipNorm'"),
  );
  t.ok(await compileTraining(line, { ...options, numerics: "fast", zero: 1 }));
});

t.test("train and its optimizers", (t) => {
  const options = { optimizer: sgd(), schedule: { rate: 1 }, data: () => ({}) };
  const misspelled = { ...options, clipnorm: 1 };
  t.throws(
    () => train(line, misspelled),
    unknown("train", "clipnorm", "Write 'clipNorm'"),
  );
  t.throws(
    () => adamw({ weight_decay: 0.1 } as object),
    unknown("train with AdamW", "weight_decay", "Write 'weightDecay'"),
  );
  t.throws(
    () => sgd({ betas: [0.9, 0.95] } as object),
    unknown("train with SGD", "betas", "Options are momentum, weightDecay"),
  );
  t.end();
});

t.test("quantizeCheckpoint", async (t) => {
  const options = { to: "q8_0", out: `${temporaryFolder(t)}/x.gguf` } as const;
  await t.rejects(
    quantizeCheckpoint(folder, files, { ...options, overwrite: true } as never),
    unknown("quantize", "overwrite", "Options are to, out, .*"),
  );
});

t.test("trainings", async (t) => {
  const run = { steps: 1, now: () => 0 };
  const settings = { optimizer: sgd(), schedule: { rate: 1 } };
  const declared = train(line, { ...settings, data: () => ({}) });
  const saving = { ...run, save_every: 2 };
  await t.rejects(
    runTraining(declared, files, saving).next(),
    unknown("train", "save_every", "Write 'saveEvery'"),
  );
  const on = { ...run, ...settings, batch: 1, length: 8 };
  const text = { ...on, data: [] };
  const trainText = (more: object) =>
    trainCheckpoint(folder, files, { ...text, ...more }).next();
  await t.rejects(
    trainText({ lenght: 8 }),
    unknown("train", "lenght", "Write 'length'"),
  );
  await t.rejects(
    trainText({ schedule: { rate: 1, warmUp: 2 } }),
    unknown("use a schedule", "warmUp", "Write 'warmup'"),
  );
  await t.rejects(
    trainText({ lora: { rank: 2, alpha: 4, target: [] } }),
    unknown("use adapters", "target", "Write 'targets'"),
  );
  const policy = { ...on, prompts: [], reward: () => 0 };
  const trainRewards = (more: object) =>
    trainPolicy(folder, files, { ...policy, ...more }).next();
  await t.rejects(
    trainRewards({ sample: 8 }),
    unknown("train", "sample", "Write 'samples'"),
  );
  await t.rejects(
    trainRewards({ rolloutNumerics: { kvCacheDType: "f16" } }),
    unknown("use rollout numerics", "kvCacheDType", "Write 'kvCacheDtype'"),
  );
});
