/**
 * The expert layer on the CPU: this project, in C and in WebAssembly, against onnxruntime's operator
 * `com.microsoft.MoE`.
 */

import { OURS, speedOf, timingOf } from "../results.ts";
import { FAST, OUR_SIDES, pause, WASM } from "./engine.ts";
import { loadOrt } from "./install.ts";
import {
  LAYER_FLOPS,
  LAYER_SIZES,
  layerInput,
  openLayer,
  type OurLayer,
  randomWeights,
} from "./layer.ts";
import { onnxLayer } from "./onnx.ts";
import { checkClose, type Compared, type Run } from "./run.ts";

/** Allowed difference of outputs, relative to the largest one. */
const TOLERANCE = 1e-4;

/** Measures all sides. */
export async function compareExpertFfn(run: Run): Promise<Compared> {
  const { tokens, embed, ffn, experts, topK } = LAYER_SIZES;
  const weights = randomWeights();
  const x = layerInput();
  const { folder, threads } = run;
  const layers: [side: string, layer: OurLayer][] = [];
  for (const [side, options] of Object.entries(OUR_SIDES)) {
    layers.push([
      side,
      await openLayer(weights, { ...options, folder, threads }),
    ]);
  }
  const { Tensor, InferenceSession } = loadOrt();
  const ort = await InferenceSession.create(onnxLayer(LAYER_SIZES, weights), {
    executionProviders: ["cpu"],
    intraOpNumThreads: run.threads,
    interOpNumThreads: 1,
  });
  const input = new Tensor("float32", x, [tokens, embed]);
  const peer = `onnxruntime-node ${run.versions["onnxruntime-node"]}`;
  const sides: { readonly [side: string]: () => Promise<Float32Array> } = {
    ...Object.fromEntries(
      layers.map(([side, layer]) => [side, () => layer.once(x)]),
    ),
    [peer]: async () =>
      (await ort.run({ x: input }))["y"]!.data as Float32Array,
  };
  const difference: { [side: string]: number } = {};
  const ours = await sides[OURS]!();
  for (const side of Object.keys(sides).slice(1)) {
    difference[side] = checkClose(ours, await sides[side]!(), {
      what: "the expert layer",
      tolerance: TOLERANCE,
    });
  }
  const times: { [side: string]: number[] } = Object.fromEntries(
    Object.keys(sides).map((side) => [side, []]),
  );
  for (let turn = -run.warmUp; turn < run.pairs; turn++) {
    for (const [side, once] of Object.entries(sides)) {
      await pause();
      const start = run.now();
      await once();
      if (turn >= 0) times[side]!.push(run.now() - start);
    }
  }
  for (const [, layer] of layers) await layer.close();
  await ort.release();
  const name = "expert FFN";
  return {
    works: [{
      work:
        `${name}: ${tokens} tokens, ${experts} experts, top-${topK}, ${embed}x${ffn}, f32`,
      amount: LAYER_FLOPS,
      unit: "GFLOP/s",
      difference,
      sides: Object.fromEntries(
        Object.entries(times).map(([side, of]) => [side, timingOf(of)]),
      ),
    }],
    ratios: {
      [`${name}: C against WebAssembly`]: speedOf(times[OURS]!, times[WASM]!),
      [`${name}: C against onnxruntime`]: speedOf(times[OURS]!, times[peer]!),
      [`${name}: C, fast numerics, against onnxruntime`]: speedOf(
        times[FAST]!,
        times[peer]!,
      ),
    },
  };
}
