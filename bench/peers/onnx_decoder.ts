/**
 * The bundled checkpoint as an ONNX model for onnxruntime, with its fused operators. All experts compute for every
 * token.
 */

import { type Demo, joined } from "./demo.ts";
import type { StepDecoder } from "./gpu_decode.ts";
import { openOrtSession } from "./gpu_run.ts";
import { transposed } from "./onnx.ts";
import { type OnnxGraph, onnxGraph, type OnnxPort } from "./onnx_graph.ts";

/** Opens the checkpoint in onnxruntime. Keys and values pass through host memory, as its API for Node requires. */
export async function ortDecoder(demo: Demo): Promise<StepDecoder> {
  const { session, Tensor } = await openOrtSession(onnxDecoder(demo));
  const { config } = demo;
  const [heads, size] = [config.num_key_value_heads, headSize(demo)];
  const caches = demo.layers.flatMap((_, i) => [`key.${i}`, `value.${i}`]);
  let count = 0;
  let past: { [name: string]: Float32Array } = {};
  return {
    reset: () => {
      count = 0;
      past = Object.fromEntries(
        caches.map((name) => [name, new Float32Array()]),
      );
    },
    step: async (tokens) => {
      const total = count + tokens.length;
      const shape = [1, heads, count, size];
      const outputs = await session.run({
        ids: new Tensor("int64", BigInt64Array.from(tokens, BigInt), [
          1,
          tokens.length,
        ]),
        last: new Tensor("int32", Int32Array.of(total - 1), [1, 1]),
        total: new Tensor("int32", Int32Array.of(total), [1]),
        ...Object.fromEntries(
          caches.map((name) => [
            name,
            new Tensor("float32", past[name]!, shape),
          ]),
        ),
      });
      count = total;
      for (const name of caches) {
        past[name] = outputs[`${name}.new`]!.data as Float32Array;
      }
      return outputs["logits"]!.data as Float32Array;
    },
    close: () => session.release(),
  };
}

function headSize({ config }: Demo): number {
  return config.hidden_size / config.num_attention_heads;
}

function onnxDecoder(demo: Demo): Uint8Array {
  const { config } = demo;
  const graph = onnxGraph();
  const { op, weight, integers } = graph;
  const embed = config.hidden_size;
  const norm = (x: string, gain: Float32Array) =>
    op("SimplifiedLayerNormalization", [x, weight([embed], gain)], {
      attributes: {
        epsilon: { float: config.rms_norm_eps },
        axis: { integer: -1 },
      },
    });
  const product = (x: string, of: Float32Array, to: number) =>
    op("MatMul", [x, weight([embed, to], transposed(of, to, embed))]);
  const [cos, sin] = rotations(demo).map((table) =>
    weight([config.max_position_embeddings, headSize(demo) / 2], table)
  ) as [string, string];
  let x = op("Gather", [
    weight([config.vocab_size, embed], demo.embedding),
    "ids",
  ]);
  const cache: OnnxPort = {
    dtype: "f32",
    shape: [1, config.num_key_value_heads, "past", headSize(demo)],
  };
  const grown: OnnxPort = {
    ...cache,
    shape: [1, config.num_key_value_heads, "all", headSize(demo)],
  };
  const inputs: { [name: string]: OnnxPort } = {};
  const outputs: { [name: string]: OnnxPort } = {};
  for (const [i, layer] of demo.layers.entries()) {
    const rows = norm(x, layer.norm);
    const [attended] = graph.ops("GroupQueryAttention", [
      norm(product(rows, layer.q, embed), layer.qNorm),
      norm(product(rows, layer.k, embed), layer.kNorm),
      product(rows, layer.v, embed),
      ...[`key.${i}`, `value.${i}`, "last", "total", cos, sin],
    ], {
      domain: "com.microsoft",
      outputs: [`attended.${i}`, `key.${i}.new`, `value.${i}.new`],
      attributes: {
        num_heads: { integer: config.num_attention_heads },
        kv_num_heads: { integer: config.num_key_value_heads },
        do_rotary: { integer: 1 },
      },
    }) as [string];
    for (const name of [`key.${i}`, `value.${i}`]) {
      inputs[name] = cache;
      outputs[`${name}.new`] = grown;
    }
    x = op("Add", [x, product(attended, layer.o, embed)]);
    const experts = feedForward(graph, demo, {
      rows: norm(x, layer.ffnNorm),
      layer,
      router: (rows) => product(rows, layer.router, config.num_experts),
    });
    x = op("Add", [x, experts]);
  }
  const last = op("Gather", [x, integers([1], [-1])], {
    attributes: { axis: { integer: 1 } },
  });
  op("MatMul", [
    norm(last, demo.norm),
    weight(
      [embed, config.vocab_size],
      transposed(demo.embedding, config.vocab_size, embed),
    ),
  ], { output: "logits" });
  return graph.model({
    inputs: {
      ids: { dtype: "i64", shape: [1, "tokens"] },
      last: { dtype: "i32", shape: [1, 1] },
      total: { dtype: "i32", shape: [1] },
      ...inputs,
    },
    outputs: {
      logits: { dtype: "f32", shape: [1, 1, config.vocab_size] },
      ...outputs,
    },
  });
}

/** Every expert computes for every token, and unchosen experts have weight 0. No step waits for the host. */
function feedForward(
  { op, ops, weight, integers }: OnnxGraph,
  { config }: Demo,
  { rows, layer, router }: {
    readonly rows: string;
    readonly layer: Demo["layers"][number];
    readonly router: (rows: string) => string;
  },
): string {
  const embed = config.hidden_size;
  const { num_experts: experts, intermediate_size: ffn } = config;
  const shares = op("Softmax", [router(rows)], {
    attributes: { axis: { integer: -1 } },
  });
  const [best] = ops("TopK", [
    shares,
    integers([1], [config.num_experts_per_tok]),
  ], { outputs: [`${shares}.best`, `${shares}.index`] }) as [string];
  const min = op("ReduceMin", [best], {
    attributes: { axes: { integers: [-1] } },
  });
  const top = op("Where", [
    op("GreaterOrEqual", [shares, min]),
    shares,
    weight([1], new Float32Array(1)),
  ]);
  const all = (
    left: string,
    parts: readonly Float32Array[],
    [from, to]: readonly [number, number],
  ) =>
    op("MatMul", [
      left,
      weight(
        [experts, from, to],
        joined(parts.map((part) => transposed(part, to, from))),
      ),
    ]);
  const gate = all(rows, layer.gate, [embed, ffn]);
  const up = all(rows, layer.up, [embed, ffn]);
  const hidden = op("Mul", [op("Mul", [gate, op("Sigmoid", [gate])]), up]);
  const done = all(hidden, layer.down, [ffn, embed]);
  const byExpert = op("Transpose", [top], {
    attributes: { perm: { integers: [2, 1, 0] } },
  });
  return op("ReduceSum", [op("Mul", [done, byExpert]), integers([1], [0])], {
    attributes: { keepdims: { integer: 1 } },
  });
}

/** Returns cosines and sines by position and pair of elements. */
export function rotations(demo: Demo): [Float32Array, Float32Array] {
  const { max_position_embeddings: positions, rope_theta: theta } = demo.config;
  const half = headSize(demo) / 2;
  const angle = (i: number) =>
    Math.floor(i / half) * theta ** (-(i % half) / half);
  const { length } = { length: positions * half };
  return [
    Float32Array.from({ length }, (_, i) => Math.cos(angle(i))),
    Float32Array.from({ length }, (_, i) => Math.sin(angle(i))),
  ];
}
