/** The expert layer of the comparisons: its sizes, its weights, and this project's side. */

import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { type HostTensor, writeSafetensors } from "../../runtime/mod.ts";
import { expertLayer } from "../models.ts";
import { randomValues } from "../session.ts";
import { openOurs, type OpenOursOptions } from "./engine.ts";
import type { LayerWeights } from "./onnx.ts";

/** Sizes of the layer. */
export const LAYER_SIZES = {
  tokens: 512,
  embed: 512,
  ffn: 1024,
  experts: 8,
  topK: 2,
};

/** Multiply-adds of the layer's experts, times two. */
export const LAYER_FLOPS = LAYER_SIZES.tokens * LAYER_SIZES.topK * 3 * 2 *
  LAYER_SIZES.embed * LAYER_SIZES.ffn;

/** Returns the input rows of the layer. */
export function layerInput(): Float32Array {
  return randomValues(LAYER_SIZES.tokens * LAYER_SIZES.embed);
}

/** This project's side. */
export interface OurLayer {
  once(x: Float32Array): Promise<Float32Array>;
  close(): Promise<void>;
}

/** Opens the layer on a device of this project. */
export async function openLayer(
  weights: LayerWeights,
  { folder, ...options }: OpenOursOptions & { readonly folder: string },
): Promise<OurLayer> {
  const { tokens, embed } = LAYER_SIZES;
  const file = join(folder, "layer.safetensors");
  writeFileSync(file, layerTensors(weights));
  const model = expertLayer(tokens);
  const { session, close } = await openOurs({ kind: "model", model }, {
    ...options,
    weights: file,
  });
  return {
    once: async (data) => {
      const x: HostTensor = { dtype: "f32", shape: [tokens, embed], data };
      const { y } = await session.run("main", { x });
      return y!.data as Float32Array;
    },
    close,
  };
}

/** Returns random weights of the layer, the same in every run. */
export function randomWeights(): LayerWeights {
  const { embed, ffn, experts } = LAYER_SIZES;
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

/** Returns the weights as a safetensors file. */
export function layerTensors(weights: LayerWeights): Uint8Array {
  const { embed, ffn, experts } = LAYER_SIZES;
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
  return writeSafetensors(tensors);
}
