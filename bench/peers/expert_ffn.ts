/** The expert layer on the CPU: this project against onnxruntime's operator `com.microsoft.MoE`. */

import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { type HostTensor, writeSafetensors } from "../../runtime/mod.ts";
import { describe, median, milliseconds } from "../measure.ts";
import { expertLayer } from "../models.ts";
import { randomValues } from "../session.ts";
import { openOnCpu, pause } from "./engine.ts";
import { loadOrt } from "./install.ts";
import { type LayerWeights, onnxLayer } from "./onnx.ts";
import { checkClose, ratioOf, type Run } from "./run.ts";

const SIZES = { tokens: 512, embed: 512, ffn: 1024, experts: 8, topK: 2 };

/** Outputs may differ by this much of the greatest one. */
const TOLERANCE = 1e-4;

/** Measure both and print. */
export async function compareExpertFfn(run: Run): Promise<void> {
  const { tokens, embed, ffn, experts, topK } = SIZES;
  const weights = randomWeights();
  const file = join(run.folder, "layer.safetensors");
  writeFileSync(file, writeSafetensors(tensorsOf(weights)));
  const x = randomValues(tokens * embed);

  const model = expertLayer(tokens);
  const ours = await openOnCpu({ kind: "model", model }, { weights: file });
  const input: HostTensor = { dtype: "f32", shape: [tokens, embed], data: x };
  const runOurs = async (): Promise<Float32Array> => {
    const { y } = await ours.session.run("main", { x: input });
    return y!.data as Float32Array;
  };

  const { Tensor, InferenceSession } = loadOrt();
  const theirs = await InferenceSession.create(onnxLayer(SIZES, weights), {
    executionProviders: ["cpu"],
    intraOpNumThreads: run.threads,
    interOpNumThreads: 1,
  });
  const theirInput = new Tensor("float32", x, [tokens, embed]);
  const runTheirs = async (): Promise<Float32Array> =>
    (await theirs.run({ x: theirInput }))["y"]!.data;

  const error = checkClose(await runOurs(), await runTheirs(), {
    what: "the expert layer",
    tolerance: TOLERANCE,
  });
  const times = { ours: [] as number[], theirs: [] as number[] };
  for (let pair = -run.warmUp; pair < run.pairs; pair++) {
    await pause();
    const our = await milliseconds(runOurs);
    await pause();
    const their = await milliseconds(runTheirs);
    if (pair < 0) continue;
    times.ours.push(our);
    times.theirs.push(their);
  }
  await ours.close();
  await theirs.release();

  const flops = tokens * topK * 3 * 2 * embed * ffn;
  console.log(
    `expert FFN: ${tokens} tokens, ${experts} experts, top-${topK}, ${embed}x${ffn}, f32; outputs differ by ${
      error.toExponential(1)
    } of the greatest`,
  );
  for (
    const [name, of] of [
      ["this project", times.ours],
      [`onnxruntime-node ${run.versions["onnxruntime-node"]}`, times.theirs],
    ] as const
  ) {
    console.log(
      `  ${name}: ${describe(of)}, ${
        (flops / 1e6 / median(of)).toFixed(1)
      } GFLOP/s`,
    );
  }
  console.log(`  speed against onnxruntime: ${ratioOf(times)}`);
}

function randomWeights(): LayerWeights {
  const { embed, ffn, experts } = SIZES;
  let seed = 10;
  const matrix = (rows: number, columns: number): Float32Array => {
    const scale = Math.sqrt(3 / columns);
    return randomValues(rows * columns, ++seed).map((value) => value * scale);
  };
  const each = (rows: number, columns: number) =>
    Array.from({ length: experts }, () => matrix(rows, columns));
  return {
    router: matrix(experts, embed),
    gate: each(ffn, embed),
    up: each(ffn, embed),
    down: each(embed, ffn),
  };
}

function tensorsOf(weights: LayerWeights): { [name: string]: HostTensor } {
  const { embed, ffn, experts } = SIZES;
  const tensors: { [name: string]: HostTensor } = {
    router: { dtype: "f32", shape: [experts, embed], data: weights.router },
  };
  for (let i = 0; i < experts; i++) {
    for (const name of ["gate", "up", "down"] as const) {
      tensors[`${i}.${name}`] = {
        dtype: "f32",
        shape: name === "down" ? [embed, ffn] : [ffn, embed],
        data: weights[name][i]!,
      };
    }
  }
  return tensors;
}
