/** The expert layer as an ONNX model: a router's product, then the operator `com.microsoft.MoE`. */

import {
  bytes,
  type Field,
  float,
  integer,
  message,
  text,
} from "./protobuf.ts";

/** Sizes of an expert layer. */
export interface LayerSizes {
  readonly tokens: number;
  readonly embed: number;
  readonly ffn: number;
  readonly experts: number;
  readonly topK: number;
}

/** Weights of an expert layer: the router's, and for each expert in turn those of its three products, outputs outermost. */
export interface LayerWeights {
  readonly router: Float32Array;
  readonly gate: readonly Float32Array[];
  readonly up: readonly Float32Array[];
  readonly down: readonly Float32Array[];
}

// Codes of onnx.proto.
const FLOAT = 1;
const ATTRIBUTE = { float: 1, integer: 2, text: 3 };

/** The bytes of the model: `x` [tokens, embed] to `y` of the same shape. */
export function onnxLayer(
  sizes: LayerSizes,
  weights: LayerWeights,
): Uint8Array {
  const { tokens, embed, ffn, experts, topK } = sizes;
  const graph = message(7, [
    node("Gemm", ["x", "router"], "logits", [integerAttribute("transB", 1)]),
    node("MoE", ["x", "logits", "gate_up", "", "down"], "y", [
      text(7, "com.microsoft"),
      integerAttribute("k", topK),
      textAttribute("activation_type", "swiglu"),
      // Gate and up interleaved, and the plain function: no scaled sigmoid, no offset.
      integerAttribute("swiglu_fusion", 1),
      floatAttribute("activation_alpha", 1),
      floatAttribute("activation_beta", 0),
      integerAttribute("normalize_routing_weights", 1),
    ]),
    text(2, "layer"),
    tensor("router", [experts, embed], [weights.router]),
    tensor(
      "gate_up",
      [experts, 2 * ffn, embed],
      weights.gate.map((gate, i) => interleave(gate, weights.up[i]!, embed)),
    ),
    tensor("down", [experts, embed, ffn], weights.down),
    port(11, "x", [tokens, embed]),
    port(12, "y", [tokens, embed]),
  ]);
  const model: Field[] = [
    integer(1, 9),
    graph,
    message(8, [text(1, ""), integer(2, 17)]),
    message(8, [text(1, "com.microsoft"), integer(2, 1)]),
  ];
  return Buffer.concat(model.flat());
}

function node(
  operator: string,
  inputs: readonly string[],
  output: string,
  more: readonly Field[],
): Field {
  return message(1, [
    ...inputs.map((name) => text(1, name)),
    text(2, output),
    text(4, operator),
    ...more,
  ]);
}

function integerAttribute(name: string, value: number): Field {
  return message(5, [
    text(1, name),
    integer(3, value),
    integer(20, ATTRIBUTE.integer),
  ]);
}

function floatAttribute(name: string, value: number): Field {
  return message(5, [
    text(1, name),
    float(2, value),
    integer(20, ATTRIBUTE.float),
  ]);
}

function textAttribute(name: string, value: string): Field {
  return message(5, [
    text(1, name),
    text(4, value),
    integer(20, ATTRIBUTE.text),
  ]);
}

function tensor(
  name: string,
  shape: readonly number[],
  parts: readonly Float32Array[],
): Field {
  const data = Buffer.concat(
    parts.map((part) =>
      new Uint8Array(part.buffer, part.byteOffset, part.byteLength)
    ),
  );
  return message(5, [
    ...shape.map((size) => integer(1, size)),
    integer(2, FLOAT),
    text(8, name),
    bytes(9, data),
  ]);
}

function port(number: number, name: string, shape: readonly number[]): Field {
  const dimensions = shape.map((size) => message(1, [integer(1, size)]));
  const type = message(1, [integer(1, FLOAT), message(2, dimensions)]);
  return message(number, [text(1, name), message(2, [type])]);
}

/** Rows of two matrices in turn. */
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
