/** Selection biases that follow expert load in training: their formula, and the same bits on every mesh. */
// needs: cpu
// rotates with: engine/train/, compiler/graph/selection_bias.ts, compiler/graph/optimizers.ts

import t from "tap";
import { nodeFiles } from "../cli/files.ts";
import {
  combine,
  compileTraining,
  type CompileTrainingOptions,
  dispatch,
  dot,
  map,
  mean,
  type Model,
  model,
  route,
  train as declare,
  upTo,
} from "../compiler/mod.ts";
import { readTraining, runTraining } from "../engine/mod.ts";
import { type HostTensor, tensorsInMemory } from "../runtime/mod.ts";
import { switchyard, temporaryFolder } from "./helpers/cli.ts";
import { openSession } from "./helpers/sessions.ts";
import { TEXT, tinyModel } from "./helpers/tiny_training.ts";
import { waves } from "./helpers/waves.ts";

const [TOKENS, EMBED, EXPERTS, TOP] = [10, 6, 4, 2];
const RATE = 0.125;

/** Biases before the first step. */
const FIRST = [0.1, 0.2, -0.3, 0];

/** A sigmoid router with a bias. The model returns its choices. */
const net = layer(true);

function layer(biased: boolean): Model {
  const sizes = { token: upTo(16), embed: EMBED, expert: EXPERTS, choice: TOP };
  return model(sizes, (m) => {
    const x = m.input("x", "token embed");
    const logits = dot(x, m.param("router", "expert embed"), "embed");
    const routing = route(logits, {
      over: "expert",
      topK: TOP,
      preset: "deepseekV3",
      ...biased ? { bias: m.param("bias", "expert") } : {},
    });
    const sent = dispatch(x, routing);
    const done = dot(sent, m.param("w.{expert}", "expert embed"), "embed");
    const y = combine(done, routing);
    return {
      loss: mean(map((v) => v * v - v, y), "token"),
      chosen: routing.index,
    };
  });
}

function tensor(
  shape: readonly number[],
  data: readonly number[],
): HostTensor {
  return { dtype: "f32", shape, data: Float32Array.from(data) };
}

function weights() {
  const { router, ...rest } = {
    router: tensor([EXPERTS, EMBED], waves(EXPERTS * EMBED)),
    bias: tensor([EXPERTS], FIRST),
  };
  const experts = Array.from(
    { length: EXPERTS },
    (_, e) =>
      [`w.${e}`, tensor([EMBED], waves(EMBED).map((x) => x + e))] as const,
  );
  return tensorsInMemory(
    { router, ...rest, ...Object.fromEntries(experts) },
    "the test",
  );
}

/** Tokens of a step's batch; each step has others. */
function batch(step: number): HostTensor {
  const all = waves((step + 1) * TOKENS * EMBED);
  return tensor([TOKENS, EMBED], all.slice(-TOKENS * EMBED));
}

const options = {
  loss: "loss",
  optimizer: { kind: "adamW", weightDecay: 0.5 },
} as const;

function scalar(x: number): HostTensor {
  return tensor([], [x]);
}

/** Trains three steps; returns the biases after each step, and the chosen experts of each. */
async function train(
  more: Partial<CompileTrainingOptions>,
  batches = 1,
): Promise<{ readonly biases: number[][]; readonly chosen: number[][] }> {
  const plan = await compileTraining(net, {
    ...options,
    accumulate: batches > 1,
    ...more,
  });
  // openSession() verifies the plan.
  const session = await openSession(plan, {
    target: "cpu",
    tensors: weights(),
  });
  const biases: number[][] = [];
  const chosen: number[][] = [];
  for (let step = 1; step <= 3; step++) {
    const here: number[] = [];
    for (let i = 0; i < batches; i++) {
      const last = i === batches - 1;
      const program = last ? plan.programs[0]! : plan.programs[1]!;
      const all: { readonly [name: string]: HostTensor } = {
        x: batch(step * batches + i),
        learning_rate: scalar(0.01),
        step: scalar(step),
        share: scalar(1 / batches),
        keep: scalar(i === 0 ? 0 : 1),
      };
      const inputs = Object.fromEntries(
        Object.entries(all).filter(([name]) => name in program.inputs),
      );
      const outputs = await session.run(program.name, inputs);
      here.push(...outputs["chosen"]!.data);
    }
    chosen.push(here);
    biases.push([...(await session.read(["bias"]))["bias"]!.data]);
  }
  await session.close();
  return { biases, chosen };
}

/** Expected biases after each step. */
function expected(chosen: readonly (readonly number[])[]): number[][] {
  let bias = Float32Array.from(FIRST);
  return chosen.map((choices) => {
    const load = new Array<number>(EXPERTS).fill(0);
    for (const expert of choices) load[expert]!++;
    const mean = choices.length / EXPERTS;
    bias = bias.map((b, e) => b + RATE * Math.sign(mean - load[e]!));
    return [...bias];
  });
}

const MESHES = [{ ep: 1 }, { ep: 2 }, { dp: 2, ep: 2 }] as const;

for (const batches of [1, 2]) {
  t.test(`a bias follows the load of ${batches} batches`, async (t) => {
    for (const mesh of MESHES) {
      for (const zero of [0, 1] as const) {
        const { biases, chosen } = await train(
          { mesh, zero, biasUpdate: RATE },
          batches,
        );
        const title = `${JSON.stringify(mesh)} zero ${zero}`;
        t.equal(chosen[0]!.length, batches * TOKENS * TOP);
        t.same(biases, expected(chosen), title);
        t.notSame(biases[0], biases[2], "the bias changes");
      }
    }
  });
}

t.test("a bias without updates is constant, despite weight decay", async (t) => {
  const { biases } = await train({});
  t.same(biases[2], [...Float32Array.from(FIRST)]);
});

t.test("an update without a bias is rejected", async (t) => {
  await t.rejects(
    compileTraining(layer(false), { ...options, biasUpdate: RATE }),
    {
      name: "ModelError",
      message:
        "Cannot update selection biases: no router of the model has one. Leave the update out",
    },
  );
});

t.test("the rate is saved and cannot change", async (t) => {
  const out = temporaryFolder(t);
  const files = nodeFiles();
  const run = async (biasUpdate: number, steps: number, resume: boolean) => {
    const training = declare(net, {
      optimizer: options.optimizer,
      schedule: { rate: 0.01 },
      biasUpdate,
      data: (step) => ({ x: batch(step) }),
    });
    const metrics = runTraining(training, files, {
      steps,
      out,
      resume,
      sharing: "shared",
      adapter: "cpu",
      now: () => 0,
    });
    for await (const _ of metrics);
  };
  await run(RATE, 1, false);
  t.equal((await readTraining(out, files)).settings.biasUpdate, RATE);
  await run(RATE, 2, true);
  await t.rejects(run(1, 3, true), {
    name: "DataError",
    message: /'biasUpdate' was 0.125, and is 1. Leave it as it was/,
  });
});

t.test("--bias-update of a model without biases", async (t) => {
  const found = await switchyard([
    ...["train", await tinyModel(t), "--data", TEXT, "--adapter", "cpu"],
    ...["--batch", "2", "--length", "8", "--steps", "1"],
    ...["--out", `${temporaryFolder(t)}/out`, "--bias-update", "0.1"],
  ]);
  t.match(found, { err: /no router of the model has one/ });
  t.not(found.code, 0);
});
