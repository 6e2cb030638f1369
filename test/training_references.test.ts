/** Training against recorded runs of published implementations, in the reference evaluator: losses, gradients, steps. */

import t, { type Test } from "tap";
import {
  evaluate,
  type EvaluateOptions,
  type Tensors,
} from "../compiler/graph/evaluate.ts";
import { withGradients } from "../compiler/graph/gradients.ts";
import type { Graph } from "../compiler/graph/graph.ts";
import { trace } from "../compiler/graph/trace.ts";
import { STEP_INPUTS, trainStep } from "../compiler/graph/train_step.ts";
import { lowerScalars } from "../compiler/scalars.ts";
import { packBatch } from "../engine/packing.ts";
import { type Config, publishedModel } from "../models/mod.ts";
import { readJson, readTensors } from "./helpers/read_tensors.ts";

/** Recorded batches have three rows of twenty tokens. */
const [ROWS, COLUMNS] = [3, 20];

interface Hyper {
  readonly lr: number;
  readonly betas: [number, number];
  readonly eps: number;
  readonly weight_decay: number;
  readonly router_aux_loss_coef: number;
}

/** The model of a checkpoint with its loss. */
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

/** A recorded batch as inputs: real tokens, each with the next one as its label. */
function batchInputs(name: string, batch: "full" | "padded"): Tensors {
  const recorded = readTensors(`${name}/train_batch.safetensors`);
  const mask = recorded[`${batch}.attention_mask`];
  const { ids, sequence, position, cell } = packBatch({
    rows: ROWS,
    columns: COLUMNS,
    ids: recorded[`${batch}.input_ids`]!,
    ...mask ? { mask } : {},
  });
  const given = recorded[`${batch}.labels`]!;
  const labels = [...cell].map((at) =>
    (at + 1) % COLUMNS === 0 ? -100 : given[at + 1]!
  );
  return { ids, sequence, position, labels };
}

/** A stacked tensor, from one per expert. */
function stacked(tensors: Tensors, name: string): number[] {
  if (name in tensors) return [...Array.from(tensors[name]!)];
  const all: number[] = [];
  for (let i = 0;; i++) {
    const part = tensors[name.replaceAll("{expert}", String(i))];
    if (part === undefined) return all;
    for (let j = 0; j < part.length; j++) all.push(part[j]!);
  }
}

function paramNames(graph: Graph): string[] {
  return graph.nodes.flatMap((node) =>
    node.primitive === "param" ? [node.params.name] : []
  );
}

/** The largest difference, relative to the largest expected magnitude. */
function distance(got: ArrayLike<number>, want: readonly number[]): number {
  if (got.length !== want.length) return Infinity;
  const scale = want.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
  const off = want.reduce((a, b, i) => Math.max(a, Math.abs(got[i]! - b)), 0);
  return off / scale;
}

function lossesHold(
  t: Test,
  outputs: { readonly [name: string]: { readonly data: ArrayLike<number> } },
  wanted: readonly number[],
): void {
  ["loss", "ce_loss", "aux_loss"].forEach((name, i) => {
    const got = outputs[name]!.data[0]!;
    const error = Math.abs(got - wanted[i]!) / wanted[i]!;
    t.ok(error < 1e-4, `${name} ${got}: off by ${error}`);
  });
}

for (const name of ["mixtral-8e", "olmoe-16e"]) {
  t.test(`gradients of ${name}`, async (t) => {
    const hyper = readJson(`${name}/train_hparams.json`) as unknown as Hyper;
    const { graph, scalars } = await trainingGraph(name, hyper);
    const whole = withGradients(graph, "loss", scalars);
    const params = readTensors(`${name}/model.safetensors`);
    const recorded = readTensors(`${name}/train_batch.safetensors`);
    for (const batch of ["full", "padded"] as const) {
      const inputs = batchInputs(name, batch);
      const { outputs } = evaluate(whole, { inputs, params });
      lossesHold(
        t,
        outputs,
        ["loss", "ce_loss", "aux_loss"].map((n) =>
          recorded[`${batch}.${n}`]![0]!
        ),
      );
      const wanted = readTensors(`${name}/train_grads_${batch}.safetensors`);
      let compared = 0;
      for (const param of paramNames(graph)) {
        const want = stacked(wanted, param);
        const got = outputs[`grad.${param}`]!.data;
        if (want.length === 0) continue;
        compared++;
        const error = distance(got, want);
        t.ok(error < 1e-3, `${batch}: gradient of ${param} off by ${error}`);
      }
      t.ok(compared > 5, `${batch}: ${compared} gradients compared`);
    }
  });

  t.test(`three steps of AdamW on ${name}`, async (t) => {
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
    const first = readTensors(`${name}/model.safetensors`);
    let next: Tensors = Object.fromEntries(
      names.map((param) => [param, stacked(first, param)]),
    );
    const recorded = readTensors(`${name}/train_batch.safetensors`);
    const losses = recorded["full.step_losses"]!;
    const inputs = batchInputs(name, "full");
    for (let n = 0; n < 3; n++) {
      const given: EvaluateOptions = {
        inputs: {
          ...inputs,
          [STEP_INPUTS.rate]: [hyper.lr],
          [STEP_INPUTS.step]: [n + 1],
        },
        // Parameters and what is remembered of them, by name.
        params: next,
        states: next,
      };
      const result = evaluate(step, given);
      lossesHold(t, result.outputs, losses.slice(3 * n, 3 * n + 3));
      next = Object.fromEntries(
        Object.entries(result.states).map(([key, { data }]) => [key, data]),
      );
    }
    const last = readTensors(`${name}/train_params_after_3_steps.safetensors`);
    let [count, far, worst] = [0, 0, 0];
    for (const param of names) {
      const want = stacked(last, param);
      want.forEach((x, i) => {
        const off = Math.abs(next[param]![i]! - x);
        count++;
        if (off > 1e-4) far++;
        worst = Math.max(worst, off);
      });
    }
    t.ok(worst < 2e-3, `parameters are off by ${worst} at most`);
    t.ok(far / count < 1e-3, `${far} of ${count} are off by more than 1e-4`);
  });
}
