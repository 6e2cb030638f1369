/** Writes ONNX models: a list of nodes, with the weights inside. */

import {
  bytes,
  type Field,
  float,
  integer,
  message,
  text,
} from "./protobuf.ts";

// Codes of onnx.proto.
const ATTRIBUTE = { float: 1, integer: 2, text: 3, integers: 7 };
const ELEMENT = { f32: 1, i32: 6, i64: 7 };

/** The value of an attribute. */
export type Attribute =
  | { readonly float: number }
  | { readonly integer: number }
  | { readonly integers: readonly number[] }
  | { readonly text: string };

/** An input or output: its element type, and its sizes or their names. */
export interface OnnxPort {
  readonly dtype: keyof typeof ELEMENT;
  readonly shape: readonly (number | string)[];
}

/** Options of a node. */
export interface NodeOptions {
  readonly attributes?: { readonly [name: string]: Attribute };
  /** `com.microsoft` for operators of onnxruntime. */
  readonly domain?: string;
  /** The name of its output. Default: a free name. */
  readonly output?: string;
}

/** A graph under construction. Operators return the names of their outputs. */
export interface OnnxGraph {
  op(operator: string, inputs: readonly string[], o?: NodeOptions): string;
  /** Adds an operator with several outputs. */
  ops(
    operator: string,
    inputs: readonly string[],
    o: NodeOptions & { readonly outputs: readonly string[] },
  ): readonly string[];
  weight(shape: readonly number[], ...parts: readonly Float32Array[]): string;
  integers(shape: readonly number[], values: readonly number[]): string;
  model(ports: {
    readonly inputs: { readonly [name: string]: OnnxPort };
    readonly outputs: { readonly [name: string]: OnnxPort };
  }): Uint8Array;
}

/** Creates an empty graph. */
export function onnxGraph(): OnnxGraph {
  const nodes: Field[] = [];
  const tensors: Field[] = [];
  let count = 0;
  const fresh = () => `v${count++}`;
  const ops: OnnxGraph["ops"] = (operator, inputs, o) => {
    nodes.push(message(1, [
      ...inputs.map((name) => text(1, name)),
      ...o.outputs.map((name) => text(2, name)),
      text(4, operator),
      ...Object.entries(o.attributes ?? {}).map(attribute),
      ...o.domain === undefined ? [] : [text(7, o.domain)],
    ]));
    return o.outputs;
  };
  const tensor =
    (dtype: OnnxPort["dtype"], shape: readonly number[]) =>
    (data: Uint8Array): string => {
      const name = fresh();
      tensors.push(message(5, [
        ...shape.map((size) => integer(1, size)),
        integer(2, ELEMENT[dtype]),
        text(8, name),
        bytes(9, data),
      ]));
      return name;
    };
  return {
    ops,
    op: (operator, inputs, o = {}) =>
      ops(operator, inputs, { ...o, outputs: [o.output ?? fresh()] })[0]!,
    weight: (shape, ...parts) =>
      tensor("f32", shape)(
        Buffer.concat(parts.map((part) =>
          new Uint8Array(part.buffer, part.byteOffset, part.byteLength)
        )),
      ),
    integers: (shape, values) =>
      tensor("i64", shape)(
        new Uint8Array(BigInt64Array.from(values, BigInt).buffer),
      ),
    model: ({ inputs, outputs }) => {
      const ports = (number: number, of: typeof inputs) =>
        Object.entries(of).map(([name, port]) => portField(number, name, port));
      const graph = message(7, [
        ...nodes,
        text(2, "graph"),
        ...tensors,
        ...ports(11, inputs),
        ...ports(12, outputs),
      ]);
      const model: Field[] = [
        integer(1, 9),
        graph,
        message(8, [text(1, ""), integer(2, 17)]),
        message(8, [text(1, "com.microsoft"), integer(2, 1)]),
      ];
      return Buffer.concat(model.flat());
    },
  };
}

function attribute([name, value]: [string, Attribute]): Field {
  if ("float" in value) {
    return message(5, [
      ...[text(1, name), float(2, value.float)],
      integer(20, ATTRIBUTE.float),
    ]);
  }
  if ("integer" in value) {
    return message(5, [
      ...[text(1, name), integer(3, value.integer)],
      integer(20, ATTRIBUTE.integer),
    ]);
  }
  if ("text" in value) {
    return message(5, [
      ...[text(1, name), text(4, value.text)],
      integer(20, ATTRIBUTE.text),
    ]);
  }
  return message(5, [
    text(1, name),
    ...value.integers.map((one) => integer(8, one)),
    integer(20, ATTRIBUTE.integers),
  ]);
}

function portField(
  number: number,
  name: string,
  { dtype, shape }: OnnxPort,
): Field {
  const dimensions = shape.map((size) =>
    message(1, [typeof size === "number" ? integer(1, size) : text(2, size)])
  );
  const type = message(1, [
    integer(1, ELEMENT[dtype]),
    message(2, dimensions),
  ]);
  return message(number, [text(1, name), message(2, [type])]);
}
