/** The expert layer on the CPU: this project against onnxruntime's operator `com.microsoft.MoE`. */

import { availableParallelism } from "node:os";
import { describe, median, milliseconds } from "../measure.ts";
import { pause } from "./engine.ts";
import { loadOrt } from "./install.ts";
import { LAYER_SIZES, layerInput, openLayer, randomWeights } from "./layer.ts";
import { onnxLayer } from "./onnx.ts";
import { checkClose, ratioOf, type Run } from "./run.ts";

/** Outputs may differ by this much of the greatest one. */
const TOLERANCE = 1e-4;

/** Measure both and print. */
export async function compareExpertFfn(run: Run): Promise<void> {
  const { tokens, embed, ffn, experts, topK } = LAYER_SIZES;
  const weights = randomWeights();
  const x = layerInput();
  const ours = await openLayer(weights, {
    folder: run.folder,
    adapter: "cpu",
    threads: availableParallelism(),
  });
  const runOurs = () => ours.once(x);

  const { Tensor, InferenceSession } = loadOrt();
  const theirs = await InferenceSession.create(
    onnxLayer(LAYER_SIZES, weights),
    {
      executionProviders: ["cpu"],
      intraOpNumThreads: run.threads,
      interOpNumThreads: 1,
    },
  );
  const theirInput = new Tensor("float32", x, [tokens, embed]);
  const runTheirs = async (): Promise<Float32Array> =>
    (await theirs.run({ x: theirInput }))["y"]!.data as Float32Array;

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
