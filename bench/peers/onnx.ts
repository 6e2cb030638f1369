/** The expert layer as an ONNX model: with the operator `com.microsoft.MoE`, or with separate products per expert. */

import { onnxGraph } from "./onnx_graph.ts";

/** Sizes of an expert layer. */
export interface LayerSizes {
  readonly tokens: number;
  readonly embed: number;
  readonly ffn: number;
  readonly experts: number;
  readonly topK: number;
}

/**
 * Weights of an expert layer: the router's, and those of each expert's three products, with outputs as the first axis.
 */
export interface LayerWeights {
  readonly router: Float32Array;
  readonly gate: readonly Float32Array[];
  readonly up: readonly Float32Array[];
  readonly down: readonly Float32Array[];
}

/** Returns the bytes of the model from `x` [tokens, embed] to `y` with the same shape. */
export function onnxLayer(
  sizes: LayerSizes,
  weights: LayerWeights,
): Uint8Array {
  const { tokens, embed, ffn, experts, topK } = sizes;
  const graph = onnxGraph();
  const logits = graph.op("Gemm", [
    "x",
    graph.weight([experts, embed], weights.router),
  ], { attributes: { transB: { integer: 1 } } });
  const gateUp = graph.weight(
    [experts, 2 * ffn, embed],
    ...weights.gate.map((gate, i) => interleave(gate, weights.up[i]!, embed)),
  );
  const down = graph.weight([experts, embed, ffn], ...weights.down);
  graph.op("MoE", ["x", logits, gateUp, "", down], {
    output: "y",
    domain: "com.microsoft",
    attributes: {
      k: { integer: topK },
      activation_type: { text: "swiglu" },
      // Gate and up are interleaved. The plain function has neither a scaled sigmoid nor an offset.
      swiglu_fusion: { integer: 1 },
      activation_alpha: { float: 1 },
      activation_beta: { float: 0 },
      normalize_routing_weights: { integer: 1 },
    },
  });
  const port = { dtype: "f32", shape: [tokens, embed] } as const;
  return graph.model({ inputs: { x: port }, outputs: { y: port } });
}

/** Returns the same layer with basic operators: rows are gathered, multiplied and scattered per expert. */
export function onnxLayerOfProducts(
  sizes: LayerSizes,
  weights: LayerWeights,
): Uint8Array {
  const { tokens, embed, ffn, experts, topK } = sizes;
  const graph = onnxGraph();
  const { op, weight, integers } = graph;
  const choices = tokens * topK;
  const logits = op("MatMul", [
    "x",
    weight([embed, experts], transposed(weights.router, experts, embed)),
  ]);
  const [values, index] = graph.ops("TopK", [logits, integers([1], [topK])], {
    outputs: ["values", "index"],
  }) as [string, string];
  const shares = op("Reshape", [
    op("Softmax", [values], { attributes: { axis: { integer: -1 } } }),
    integers([3], [tokens, topK, 1]),
  ]);
  const flat = op("Reshape", [index, integers([1], [choices])]);
  const [inferred, each] = [integers([1], [-1]), integers([1], [topK])];
  const parts = Array.from({ length: experts }, (_, e) => {
    const found = op("NonZero", [op("Equal", [flat, integers([1], [e])])]);
    const choice = op("Reshape", [found, inferred]);
    const rows = op("Gather", ["x", op("Div", [choice, each])]);
    const product = (
      left: string,
      of: Float32Array,
      [from, to]: readonly [number, number],
    ) => op("MatMul", [left, weight([from, to], transposed(of, to, from))]);
    const gate = product(rows, weights.gate[e]!, [embed, ffn]);
    const up = product(rows, weights.up[e]!, [embed, ffn]);
    const hidden = op("Mul", [
      op("Mul", [gate, op("Sigmoid", [gate])]),
      up,
    ]);
    return { choice, done: product(hidden, weights.down[e]!, [ffn, embed]) };
  });
  const joined = (names: readonly string[]) =>
    op("Concat", names, { attributes: { axis: { integer: 0 } } });
  const back = op("ScatterND", [
    weight([choices, embed], new Float32Array(choices * embed)),
    op("Unsqueeze", [
      joined(parts.map(({ choice }) => choice)),
      integers([1], [1]),
    ]),
    joined(parts.map(({ done }) => done)),
  ]);
  const results = op("Reshape", [back, integers([3], [tokens, topK, embed])]);
  op("ReduceSum", [op("Mul", [results, shares]), integers([1], [1])], {
    output: "y",
    attributes: { keepdims: { integer: 0 } },
  });
  const port = { dtype: "f32", shape: [tokens, embed] } as const;
  return graph.model({ inputs: { x: port }, outputs: { y: port } });
}

/** Transposes a matrix. */
export function transposed(
  matrix: Float32Array,
  rows: number,
  columns: number,
): Float32Array {
  const result = new Float32Array(matrix.length);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      result[column * rows + row] = matrix[row * columns + column]!;
    }
  }
  return result;
}

/** Interleaves the rows of two matrices. */
function interleave(
  first: Float32Array,
  second: Float32Array,
  columns: number,
): Float32Array {
  const both = new Float32Array(first.length + second.length);
  for (let from = 0; from < first.length; from += columns) {
    both.set(first.subarray(from, from + columns), 2 * from);
    both.set(second.subarray(from, from + columns), 2 * from + columns);
  }
  return both;
}
