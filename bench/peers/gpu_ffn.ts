/** The expert layer on one adapter: this project against others with WebGPU. Rows start and end in host memory. */

import { milliseconds } from "../measure.ts";
import { OURS, type Result } from "../results.ts";
import { type GpuRun, openOrtSession } from "./gpu_run.ts";
import { jaxLayer } from "./jax_layer.ts";
import {
  LAYER_FLOPS,
  LAYER_SIZES,
  layerInput,
  openLayer,
  randomWeights,
} from "./layer.ts";
import { type LayerWeights, onnxLayerOfProducts } from "./onnx.ts";
import { tfLayer } from "./tf_layer.ts";
import { interleave, type Side } from "./interleave.ts";

/** The measured part of the work. */
const PART = "layer";

/** Allowed difference of outputs, relative to the largest one. */
const TOLERANCE = 1e-4;

/** Measures all sides. */
export async function compareFfnOnGpu(
  run: GpuRun,
): Promise<Pick<Result, "works" | "ratios">> {
  const { tokens, embed, ffn, experts, topK } = LAYER_SIZES;
  const weights = randomWeights();
  const x = layerInput();
  const side = (
    compute: () => Promise<Float32Array>,
    close: () => Promise<void>,
  ): Side => ({
    values: async () => (await compute()).slice(),
    once: async () => ({ ms: { [PART]: await milliseconds(compute) } }),
    close,
  });
  return await interleave(
    {
      [OURS]: async () => {
        const { folder, adapter, threads } = run;
        const layer = await openLayer(weights, {
          folder,
          adapter: [adapter.number],
          threads,
        });
        return side(() => layer.once(x), layer.close);
      },
      "onnxruntime-node": async () => {
        const { compute, close } = await ortLayer(weights, x);
        return side(compute, close);
      },
      "@tensorflow/tfjs": async () => {
        const compute = await tfLayer(run.adapter.name, weights, x);
        return side(compute, () => Promise.resolve());
      },
      "@jax-js/jax": async () => {
        const compute = await jaxLayer(run.adapter.name, weights, x);
        return side(compute, () => Promise.resolve());
      },
    },
    {
      [PART]: {
        work:
          `expert FFN, ${tokens} tokens, ${experts} experts, top-${topK}, ${embed}x${ffn}`,
        amount: LAYER_FLOPS,
        unit: "GFLOP/s",
      },
    },
    {
      ...run,
      tolerance: TOLERANCE,
      absent: { "node-llama-cpp": "it runs whole models only" },
    },
  );
}

async function ortLayer(weights: LayerWeights, x: Float32Array) {
  const { session, Tensor } = await openOrtSession(
    onnxLayerOfProducts(LAYER_SIZES, weights),
  );
  return {
    compute: async () => {
      const shape = [LAYER_SIZES.tokens, LAYER_SIZES.embed];
      const results = await session.run({
        x: new Tensor("float32", x, shape),
      });
      return results["y"]!.data as Float32Array;
    },
    close: () => session.release(),
  };
}
