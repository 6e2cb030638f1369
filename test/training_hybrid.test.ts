/** Training with recurrences, convolutions, shared caches and selected keys: on meshes, the losses of one rank. */
// needs: cpu
// rotates with: compiler/kernels/linear_recurrence.ts, compiler/kernels/conv1d.ts, compiler/graph/primitives/

import t from "tap";
import { compileGraph } from "../compiler/compile.ts";
import { STEP_INPUTS, trainStep } from "../compiler/graph/train_step.ts";
import { trace } from "../compiler/graph/trace.ts";
import { lowerScalars } from "../compiler/scalars.ts";
import { integerView } from "../engine/encodings/integers.ts";
import type { Config } from "../models/mod.ts";
import { publishedModel } from "../models/published.ts";
import { createCpuDevice } from "../runtime/cpu/mod.ts";
import {
  createSession,
  type Device,
  type HostTensor,
  openSafetensors,
} from "../runtime/mod.ts";
import { verifyPlan } from "../spec/mod.ts";
import { checkpointFolder, files } from "./helpers/checkpoints.ts";
import { readJson } from "./helpers/read_tensors.ts";
import { inTurn } from "./helpers/seed.ts";

const [ROWS, STEPS] = [2, 3];

/** Tokens per sequence. DeepSeek-V4 compresses 4 and 16 tokens. */
function columnsOf(name: string): number {
  return name === "deepseekv4-12e" ? 20 : 12;
}

/**
 * Checkpoints and meshes. Qwen3.5, Kimi and Ling have no tp, since gradients that sum over four or six heads cannot be
 * sharded.
 */
const MESHES: {
  readonly [name: string]: readonly { readonly [axis: string]: number }[];
} = {
  "granitemoehybrid-12e": [{ tp: 2 }],
  "nemotronh-16e": [{ ep: 2 }, { tp: 2 }],
  "lfm2moe-16e": [{ tp: 2, ep: 2 }],
  "qwen35moe-8e-wrapped": [{ ep: 2 }],
  "gemma4moe-8e-ple": [{ ep: 2 }],
  "glmmoedsa-16e": [{ ep: 2 }, { tp: 2 }],
  "deepseekv4-12e": [{ ep: 2 }, { tp: 2 }],
  "longcatflash-12e": [{ ep: 2 }],
  "kimilinear-12e": [{ ep: 2 }],
  "kimik3-12e": [{ ep: 2 }],
  "bailingmoev3-12e": [{ ep: 2 }],
};

/** Two sequences of tokens, labelled with the next tokens. */
function batch(columns: number): { readonly [name: string]: HostTensor } {
  const at = Array.from({ length: ROWS * columns }, (_, i) => i);
  const ids = at.map((i) => 3 + i * i * 7 % 120);
  const i32 = (values: number[]): HostTensor => ({
    dtype: "i32",
    shape: [values.length],
    data: Int32Array.from(values),
  });
  return {
    ids: i32(ids),
    sequence: i32(at.map((i) => Math.floor(i / columns))),
    position: i32(at.map((i) => i % columns)),
    labels: i32(at.map((i) => (i + 1) % columns === 0 ? -100 : ids[i + 1]!)),
  };
}

function number(value: number): HostTensor {
  return { dtype: "f32", shape: [], data: Float32Array.of(value) };
}

for (const [name, meshes] of inTurn(Object.entries(MESHES), 3)) {
  t.test(`${name} is trained`, async (t) => {
    const columns = columnsOf(name);
    const device = await createCpuDevice();
    t.teardown(() => device.destroy());
    const graph = trace(
      publishedModel(readJson(`${name}/config.json`) as Config).build({
        maxTokens: ROWS * columns,
        maxSequences: ROWS,
        maxContext: columns,
        training: { auxiliary: 0.01 },
      }),
    );
    const step = trainStep(graph, {
      loss: "loss",
      optimizer: {
        kind: "adamW",
        betas: [0.9, 0.99],
        epsilon: 1e-8,
        weightDecay: 0.01,
      },
    }, await lowerScalars(graph));
    const indexers = Object.keys(step.states)
      .filter((state) => /indexer\..*(weight|bias)$/.test(state));
    t.strictSame(indexers, [], "indexers are constant");
    const file = `${checkpointFolder(name)}/model.safetensors`;
    const source = { name: file, ...await files.open(file) };
    t.teardown(() => source.close());
    const inputs = batch(columns);
    const losses: number[][] = [];
    const turn = inTurn(meshes, meshes.length);
    for (const mesh of [{}, ...turn]) {
      const plan = await compileGraph(step, { mesh });
      t.strictSame(verifyPlan(plan), []);
      const session = await createSession(plan, {
        devices: new Array<Device>(plan.ranks).fill(device),
        tensors: new Map(
          [...await openSafetensors([source])].map(([name, entry]) => [
            name,
            integerView(entry) ?? entry,
          ]),
        ),
      });
      const found: number[] = [];
      for (let n = 0; n < STEPS; n++) {
        const outputs = await session.run("main", {
          ...inputs,
          [STEP_INPUTS.rate]: number(1e-3),
          [STEP_INPUTS.step]: number(n + 1),
        });
        found.push(outputs["loss"]!.data[0]!);
      }
      losses.push(found);
    }
    const [one, ...others] = losses;
    t.ok(one!.at(-1)! < one![0]!, `losses fall: ${one}`);
    for (const [i, other] of others.entries()) {
      const error = Math.max(
        ...other.map((loss, n) => Math.abs(loss / one![n]! - 1)),
      );
      t.ok(error < 1e-6, `${JSON.stringify(turn[i])}: off by ${error}`);
    }
  });
}
