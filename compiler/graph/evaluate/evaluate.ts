/**
 * The reference evaluator: runs a graph on the CPU in plain loops. It defines the meaning of the language and is the
 * oracle of every kernel; it is not fast. Values are rounded to their dtype at every node. Contractions (`dot`) have
 * the bits of the CPU device: the order of `numerics.md`, with every product and sum rounded to f32. Other sums are in
 * double precision.
 */

import { quantity } from "../../../spec/quantity.ts";
import { shortAxis } from "../../../spec/axis_name.ts";
import { DataError, invariant } from "../../../spec/errors.ts";
import { type Context, isRouted, REFERENCE, type Result } from "./rules.ts";
import type { Graph, Node } from "../graph.ts";
import { count, put, type Shown, type Value, zeros } from "./value.ts";

/** Tensors by name, row-major. */
export interface Tensors {
  readonly [name: string]: ArrayLike<number>;
}

/** Options of `evaluate`. */
export interface EvaluateOptions {
  /** Inputs by name. */
  readonly inputs?: Tensors;
  /**
   * Parameters by name. A stacked parameter is one tensor (`experts.{expert}.up`) or one per index (`experts.0.up`,
   * …).
   */
  readonly params?: Tensors;
  /** States by name. Default: zeros. */
  readonly states?: Tensors;
  /** Precision of f32 tensors. "f64" is for derivatives by finite differences. Default: "f32". */
  readonly precision?: "f32" | "f64";
  /** Lengths of dynamic axes. Default: the length of an input along that axis, else the bound. */
  readonly lengths?: { readonly [axis: string]: number };
}

/** Result of `evaluate`. */
export interface Evaluated {
  readonly outputs: { readonly [name: string]: Value };
  /** The next value of every state. */
  readonly states: { readonly [name: string]: Value };
}

/**
 * Run a graph.
 *
 * Throws DataError for missing or wrong tensors, and for ids and positions out of range.
 */
export function evaluate(
  graph: Graph,
  options: EvaluateOptions = {},
): Evaluated {
  const lengths = axisLengths(graph, options);
  const results = new Map<Node, Result>();
  const context: Context = {
    lengthOf: (axis) => lengths.get(axis)!,
    isFixed: (axis) => !graph.axes[axis]!.dynamic,
    result: (node) => results.get(node)!,
    value: (node) => {
      const result = results.get(node)!;
      invariant(!isRouted(result), "a routing is no tensor");
      return result;
    },
    leaf: (node) => leaf(node, lengths, options),
  };
  const wide = options.precision === "f64";
  for (const node of graph.nodes) {
    const shown = wide && node.dtype === "f32"
      ? { ...node, dtype: "f64" }
      : node;
    results.set(node, REFERENCE[node.primitive](shown as never, context));
  }
  const read = (named: { readonly [name: string]: Node }) =>
    Object.fromEntries(
      Object.entries(named).map(([name, node]) => [name, context.value(node)]),
    );
  return { outputs: read(graph.outputs), states: read(graph.states) };
}

/** The length of every axis in this run. */
function axisLengths(
  graph: Graph,
  { lengths: given = {}, inputs = {} }: EvaluateOptions,
): Map<string, number> {
  const lengths = new Map<string, number>();
  for (const [axis, { size, dynamic }] of Object.entries(graph.axes)) {
    const length = dynamic ? given[axis] ?? size : size;
    if (!Number.isInteger(length) || length < 0 || length > size) {
      throw new DataError(
        `Cannot run with axis '${axis}' of ${length}: expected a whole number from 0 to ${size}`,
      );
    }
    lengths.set(axis, length);
  }
  for (const node of graph.nodes) {
    if (node.primitive === "rename") {
      lengths.set(node.params.to, lengths.get(node.params.from)!);
    }
    if (node.primitive !== "input") continue;
    const unknown = node.axes.filter((axis) =>
      graph.axes[axis]!.dynamic && given[axis] === undefined
    );
    const data = inputs[node.params.name];
    if (unknown.length !== 1 || data === undefined) continue;
    const rest = node.axes.filter((axis) => axis !== unknown[0]);
    const per = count(rest.map((axis) => lengths.get(axis)!));
    if (Number.isInteger(data.length / per)) {
      lengths.set(unknown[0]!, data.length / per);
    }
  }
  return lengths;
}

/** An input, parameter or state. */
type Leaf = Shown<"input"> | Shown<"param"> | Shown<"state">;

/** The value of a leaf. */
function leaf(
  node: Leaf,
  lengths: ReadonlyMap<string, number>,
  options: EvaluateOptions,
): Value {
  const { name } = node.params;
  const shape = node.axes.map((axis) => lengths.get(axis)!);
  if (node.primitive === "state") {
    const data = options.states?.[name];
    return data === undefined
      ? zeros(node.axes, shape, node.dtype)
      : fill(node, shape, data);
  }
  const tensors =
    (node.primitive === "input" ? options.inputs : options.params) ?? {};
  const data = tensors[name] ?? unstack(node, shape, tensors);
  if (data === undefined) {
    throw new DataError(
      `Cannot run without ${node.primitive} '${name}': it is not given`,
    );
  }
  return fill(node, shape, data);
}

/** Stacks a parameter from one tensor per index. */
function unstack(
  node: Leaf,
  shape: readonly number[],
  tensors: Tensors,
): number[] | undefined {
  if (node.primitive !== "param" || node.params.stack === undefined) {
    return undefined;
  }
  const { name, stack } = node.params;
  const all: number[] = [];
  for (let i = 0; i < shape[0]!; i++) {
    const part = tensors[name.replaceAll(`{${shortAxis(stack)}}`, String(i))];
    if (part === undefined) return undefined;
    for (let j = 0; j < part.length; j++) all.push(part[j]!);
  }
  return all;
}

function fill(
  node: Leaf,
  shape: readonly number[],
  data: ArrayLike<number>,
): Value {
  const value = zeros(node.axes, shape, node.dtype);
  if (data.length !== value.data.length) {
    throw new DataError(
      `Cannot read ${node.primitive} '${node.params.name}': it has ${
        quantity(data.length, "element")
      }, expected ${value.data.length}, [${
        node.axes.map((axis, i) => `${axis}=${shape[i]}`).join(" ")
      }]`,
    );
  }
  for (let i = 0; i < data.length; i++) put(value, i, data[i]!);
  return value;
}
