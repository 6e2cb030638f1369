/** Training against recorded runs of published implementations, in the reference evaluator and compiled. */
// needs: cpu

import t, { type Test } from "tap";
import { compileGraph } from "../compiler/compile.ts";
import { evaluate, type Tensors } from "../compiler/graph/evaluate/evaluate.ts";
import { withGradients } from "../compiler/graph/gradients/gradients.ts";
import type { Graph } from "../compiler/graph/graph.ts";
import { trace } from "../compiler/graph/trace.ts";
import { OPTIMIZER_STATES } from "../compiler/graph/optimizers.ts";
import {
  GRADIENT_NORM,
  STEP_INPUTS,
  trainStep,
} from "../compiler/graph/train_step.ts";
import { lowerScalars } from "../compiler/scalars.ts";
import { packBatch } from "../engine/generation/packing.ts";
import type { Config } from "../models/mod.ts";
import { publishedModel } from "../models/published.ts";
import { createCpuDevice } from "../runtime/cpu/mod.ts";
import { createSession, type Device, openSafetensors } from "../runtime/mod.ts";
import { verifyPlan } from "../spec/mod.ts";
import { checkpointFolder, files } from "./helpers/checkpoints.ts";
import { checkPredictions } from "./helpers/predictions.ts";
import { readJson, readTensors } from "./helpers/read_tensors.ts";
import { isInTurn } from "./helpers/seed.ts";

/** Recorded batches have three rows of twenty tokens. */
const [ROWS, COLUMNS] = [3, 20];

interface Hyper {
  readonly lr: number;
  readonly betas: [number, number];
  readonly eps: number;
  readonly weight_decay: number;
  readonly router_aux_loss_coef: number;
}

/** Outputs of a run. */
interface Outputs {
  readonly [name: string]: { readonly data: ArrayLike<number> };
}

/** Runs a graph. Parameters and states persist between runs. */
type Run = (inputs: Tensors) => Promise<Outputs>;

/** Loads the weights of a checkpoint into a graph. */
type Runner = (name: string, graph: Graph) => Promise<Run>;

/** Device of all ranks, opened on first use. */
let opened: Promise<Device> | undefined;

t.teardown(async () => (await opened)?.destroy());

/** Compiles for a mesh, on the CPU. */
function compiled(mesh: { readonly [axis: string]: number }): Runner {
  return async (name, graph) => {
    const plan = await compileGraph(graph, { mesh });
    const [error] = verifyPlan(plan);
    if (error) throw new Error(`illegal plan: ${JSON.stringify(error)}`);
    const file = `${checkpointFolder(name)}/model.safetensors`;
    const source = { name: file, ...await files.open(file) };
    t.teardown(() => source.close());
    const device = await (opened ??= createCpuDevice());
    const session = await createSession(plan, {
      devices: new Array<Device>(plan.ranks).fill(device),
      tensors: await openSafetensors([source]),
      statistics: true,
    });
    const numbers: readonly string[] = Object.values(STEP_INPUTS);
    return async (inputs) => {
      const outputs = await session.run(
        "main",
        Object.fromEntries(
          Object.entries(inputs).map(([name, values]) => [
            name,
            numbers.includes(name)
              ? { dtype: "f32", shape: [], data: Float32Array.from(values) }
              : {
                dtype: "i32",
                shape: [values.length],
                data: Int32Array.from(values),
              },
          ]),
        ),
      );
      checkPredictions(t, session);
      return outputs;
    };
  };
}

const RUNNERS: { readonly [title: string]: Runner } = {
  "in the reference": (name, graph) => {
    const params = readTensors(`${name}/model.safetensors`);
    let next: Tensors = {};
    return Promise.resolve((inputs) => {
      const { outputs, states } = evaluate(graph, {
        inputs,
        params: { ...params, ...next },
        states: next,
      });
      next = Object.fromEntries(
        Object.entries(states).map(([key, { data }]) => [key, data]),
      );
      return Promise.resolve(outputs);
    });
  },
  "compiled": compiled({}),
  "compiled for ep=2": compiled({ ep: 2 }),
  "compiled for tp=2": compiled({ tp: 2 }),
  "compiled for tp=2,ep=2": compiled({ tp: 2, ep: 2 }),
  "compiled for tp=4": compiled({ tp: 4 }),
  "compiled for dp=2,tp=2": compiled({ dp: 2, tp: 2 }),
  "compiled for dp=2,tp=2,ep=2": compiled({ dp: 2, tp: 2, ep: 2 }),
  "compiled for ep=4": compiled({ ep: 4 }),
  "compiled for dp=2,ep=2": compiled({ dp: 2, ep: 2 }),
};

/**
 * Checkpoints whose gradients of a padded batch are compared. Tests of steps compare those of a full batch, by means.
 */
const GRADIENTS: { readonly [title: string]: string } = {
  "in the reference": "olmoe-16e",
  "compiled": "mixtral-8e",
  "compiled for ep=2": "olmoe-16e",
  "compiled for tp=2,ep=2": "mixtral-8e",
  "compiled for dp=2,ep=2": "olmoe-16e",
};

/** Meshes whose axes are covered by others, with the checkpoints that take steps on them. */
const STEPS_ONLY: { readonly [title: string]: readonly string[] } = {
  "compiled for tp=2": ["mixtral-8e", "olmoe-16e"],
  "compiled for tp=4": ["mixtral-8e"],
  "compiled for dp=2,tp=2": ["olmoe-16e"],
  "compiled for dp=2,tp=2,ep=2": ["mixtral-8e"],
  "compiled for ep=4": ["olmoe-16e"],
};

/** The graph of a checkpoint with its loss. */
async function trainingGraph(name: string, { router_aux_loss_coef }: Hyper) {
  const config = readJson(`${name}/config.json`) as Config;
  const graph = trace(
    publishedModel(config).build({
      maxTokens: ROWS * COLUMNS,
      maxSequences: ROWS,
      maxContext: COLUMNS,
      training: { auxiliary: router_aux_loss_coef },
    }),
  );
  return { graph, scalars: await lowerScalars(graph) };
}

/** Inputs of a recorded batch: tokens without padding, labelled with the next tokens. */
function batchInputs(name: string, batch: "full" | "padded"): Tensors {
  const recorded = readTensors(`${name}/train_batch.safetensors`);
  const mask = recorded[`${batch}.attention_mask`];
  const { ids, sequence, position, cell } = packBatch({
    rows: ROWS,
    columns: COLUMNS,
    ids: recorded[`${batch}.input_ids`]!,
    ...mask ? { mask } : {},
  });
  const recordedLabels = recorded[`${batch}.labels`]!;
  const labels = [...cell].map((at) =>
    (at + 1) % COLUMNS === 0 ? -100 : recordedLabels[at + 1]!
  );
  return { ids, sequence, position, labels };
}

/** Stacks one tensor per expert; empty if there are none. */
function stacked(tensors: Tensors, name: string): number[] {
  if (name in tensors) return Array.from(tensors[name]!);
  const all: number[] = [];
  for (let i = 0; name.includes("{expert}"); i++) {
    const part = tensors[name.replaceAll("{expert}", String(i))];
    if (part === undefined) break;
    for (let j = 0; j < part.length; j++) all.push(part[j]!);
  }
  return all;
}

function paramNames(graph: Graph): string[] {
  return graph.nodes.flatMap((node) =>
    node.primitive === "param" ? [node.params.name] : []
  );
}

/** Max difference relative to the largest expected magnitude. */
function distance(got: ArrayLike<number>, want: readonly number[]): number {
  if (got.length !== want.length) return Infinity;
  const scale = want.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
  const off = want.reduce((a, b, i) => Math.max(a, Math.abs(got[i]! - b)), 0);
  return off / scale;
}

const LOSSES = ["loss", "ce_loss", "aux_loss"] as const;

function lossesHold(
  t: Test,
  outputs: Outputs,
  wanted: readonly number[],
): void {
  LOSSES.forEach((name, i) => {
    const got = outputs[name]!.data[0]!;
    const error = Math.abs(got - wanted[i]!) / wanted[i]!;
    t.ok(error < 1e-4, `${name} ${got}: off by ${error}`);
  });
}

async function gradientsHold(
  t: Test,
  name: string,
  runner: Runner,
): Promise<void> {
  const hyper = readJson(`${name}/train_hparams.json`) as unknown as Hyper;
  const { graph, scalars } = await trainingGraph(name, hyper);
  const run = await runner(name, withGradients(graph, "loss", { scalars }));
  const recorded = readTensors(`${name}/train_batch.safetensors`);
  for (const batch of ["full", "padded"] as const) {
    const outputs = await run(batchInputs(name, batch));
    lossesHold(
      t,
      outputs,
      LOSSES.map((loss) => recorded[`${batch}.${loss}`]![0]!),
    );
    const wanted = readTensors(`${name}/train_grads_${batch}.safetensors`);
    let compared = 0;
    for (const param of paramNames(graph)) {
      const want = stacked(wanted, param);
      if (want.length === 0) continue;
      compared++;
      const error = distance(outputs[`grad.${param}`]!.data, want);
      t.ok(error < 1e-3, `${batch}: gradient of ${param} off by ${error}`);
    }
    t.ok(compared > 5, `${batch}: ${compared} gradients compared`);
  }
}

async function stepsHold(
  t: Test,
  name: string,
  runner: Runner,
): Promise<void> {
  const hyper = readJson(`${name}/train_hparams.json`) as unknown as Hyper;
  const { graph, scalars } = await trainingGraph(name, hyper);
  const step = trainStep(graph, {
    loss: "loss",
    optimizer: {
      kind: "adamW",
      betas: hyper.betas,
      epsilon: hyper.eps,
      weightDecay: hyper.weight_decay,
    },
  }, scalars);
  const names = paramNames(graph);
  const [mean] = OPTIMIZER_STATES.adamW;
  const after = Object.fromEntries(names.flatMap((param) => [
    [`after.${param}`, step.states[param]!],
    [`mean.${param}`, step.states[`${mean}.${param}`]!],
  ]));
  const run = await runner(name, {
    ...step,
    outputs: { ...step.outputs, ...after },
  });
  const recorded = readTensors(`${name}/train_batch.safetensors`);
  const losses = recorded["full.step_losses"]!;
  const inputs = batchInputs(name, "full");
  const gradients = readTensors(`${name}/train_grads_full.safetensors`);
  const squares = names.flatMap((param) => stacked(gradients, param))
    .reduce((sum, g) => sum + g * g, 0);
  let outputs: Outputs = {};
  for (let n = 0; n < 3; n++) {
    outputs = await run({
      ...inputs,
      [STEP_INPUTS.rate]: [hyper.lr],
      [STEP_INPUTS.step]: [n + 1],
    });
    lossesHold(t, outputs, losses.slice(3 * n, 3 * n + 3));
    if (n === 0) {
      const norm = outputs[GRADIENT_NORM]!.data[0]!;
      const error = Math.abs(norm / Math.sqrt(squares) - 1);
      t.ok(error < 1e-4, `norm of gradients ${norm}: off by ${error}`);
      // AdamW is insensitive to the scale of gradients, but its first mean is proportional to them.
      for (const param of names) {
        const want = stacked(gradients, param);
        const part = want.map((g) => g * (1 - hyper.betas[0]));
        const error = distance(outputs[`mean.${param}`]!.data, part);
        t.ok(error < 1e-3, `gradient of ${param} off by ${error}`);
      }
    }
  }
  const last = readTensors(`${name}/train_params_after_3_steps.safetensors`);
  let [count, far, worst] = [0, 0, 0];
  for (const param of names) {
    const got = outputs[`after.${param}`]!.data;
    stacked(last, param).forEach((x, i) => {
      const off = Math.abs(got[i]! - x);
      count++;
      if (!(off <= 1e-4)) far++;
      worst = Math.max(worst, off);
    });
  }
  t.ok(count > 1e5, `${count} parameters compared`);
  t.ok(worst < 2e-3, `parameters are off by at most ${worst}`);
  t.ok(far / count < 1e-3, `${far} of ${count} are off by more than 1e-4`);
}

// One rank runs in each run; half of the gradients on meshes and in the reference, and a fifth of the steps.
let [gradientTurn, stepTurn] = [0, 0];
for (const name of ["mixtral-8e", "olmoe-16e"]) {
  for (const [title, runner] of Object.entries(RUNNERS)) {
    const gradients = GRADIENTS[title] === name;
    const always = title === "compiled";
    if (gradients && (always || isInTurn(gradientTurn++, 2))) {
      t.test(`gradients of ${name}, ${title}`, async (t) => {
        await gradientsHold(t, name, runner);
      });
    }
    // The reference is slow: it computes gradients of one model and steps, which contain gradients, of the other.
    if (title === "in the reference" && gradients) continue;
    if (STEPS_ONLY[title]?.includes(name) === false) continue;
    if (!always && !isInTurn(stepTurn++, 5)) continue;
    t.test(`three steps of AdamW on ${name}, ${title}`, async (t) => {
      await stepsHold(t, name, runner);
    });
  }
}
