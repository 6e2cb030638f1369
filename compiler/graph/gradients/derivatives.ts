/**
 * The derivative of each primitive: maps the cotangent of a node (the derivative of a loss by it) to the cotangents of
 * its operands, in primitives. Choices of experts or maxima have none; they are constants.
 */

import { ofCollectives } from "../collectives.ts";
import { expr } from "../../../spec/kernel/text/resolve.ts";
import { ModelError } from "../../../spec/errors.ts";
import {
  combineDerivative,
  dispatchDerivative,
  routeDerivative,
} from "./moe.ts";
import { attentionDerivative, cacheWriteDerivative } from "./position.ts";
import { differentiateScalar } from "./scalar.ts";
import {
  type Lambda,
  type Node,
  type NodeOf,
  ofExpanded,
  type Primitive,
  type ScalarFunction,
} from "../graph.ts";
import type { NodeBuilder } from "./node_builder.ts";
import { definedRows } from "../primitives/mod.ts";

/** Input of a derivative. */
export interface DerivativeInput<P extends Primitive> {
  readonly node: NodeOf<P>;
  /** The cotangent of `node`; for a routing, the cotangent of its weights. */
  readonly dy: Node;
  readonly b: NodeBuilder;
  /** The scalar function of a `map`. */
  readonly scalar: (lambda: Lambda) => ScalarFunction;
  /** The cotangent of `to`, given that of `from`, through all nodes between them. */
  readonly pull: (from: Node, dy: Node, to: Node) => Node | undefined;
}

/** The cotangent of each operand, created on demand; undefined if there is none. */
export type Cotangents = readonly ((() => Node | undefined) | undefined)[];

/** The derivative of a primitive. */
export type Derivative<P extends Primitive> = (
  input: DerivativeInput<P>,
) => Cotangents;

/** Leaves have no operands. */
function leaf(): Cotangents {
  return [];
}

/** A primitive without a derivative, and the reason. */
function refused(why: string): Derivative<Primitive> {
  return ({ node }) =>
    node.inputs.map(() => () => {
      throw new ModelError(
        `Cannot differentiate '${node.primitive}': ${why}`,
        node.span,
      );
    });
}

const onceOnly = refused(
  "it is part of a derivative, and derivatives are taken once",
);
const placed = refused(
  "it is made by placement. Differentiate before placing",
);

/** The derivatives. A primitive without one does not compile. */
export const DERIVATIVES: { readonly [P in Primitive]: Derivative<P> } = {
  input: leaf,
  param: leaf,
  state: leaf,

  map: ({ node, dy, b, scalar }) =>
    node.inputs.map((x, i) => () => {
      const slope = differentiateScalar(scalar(node.params.lambda), i);
      if (slope === undefined) return undefined;
      const operands = slope.used.map((j) => node.inputs[j] ?? dy);
      const { result } = slope.fn;
      const change = result.op === "local" && result.name === "p0"
        ? dy
        : b.apply(slope.fn, operands);
      return b.sumTo(change, x.axes);
    }),

  dot: ({ node: { inputs: [x, y] }, dy, b }) => [
    () => b.contract(dy, y!, x!),
    () => b.contract(dy, x!, y!),
  ],

  reduce: ({ node, dy, b }) => {
    const [x] = node.inputs;
    const { kind, over } = node.params;
    if (kind === "sum") return [() => b.broadcast(dy, x!)];
    if (kind === "mean") {
      const { size, dynamic } = b.context.axes[over]!;
      return [
        () =>
          dynamic
            ? b.map((_, d, n) => expr`${d} / ${n}`, x!, dy, b.count(x!, over))
            : b.map((_, d) => expr`${d} * ${1 / size}`, x!, dy),
      ];
    }
    // Equal maxima divide the cotangent evenly.
    return [() => {
      const best = b.map(
        (v, top) => expr`select(0.0, 1.0, ${v} == ${top})`,
        x!,
        node,
      );
      const share = b.map(
        (d, n) => expr`${d} / ${n}`,
        dy,
        b.make("reduce", [best], { kind: "sum", over }),
      );
      return b.map((is, d) => expr`${is} * ${d}`, best, share);
    }];
  },

  reduceSum: ({ node: { inputs: [x, y] }, dy, b }) =>
    y === undefined
      ? [() => b.broadcast(dy, x!)]
      : [() => b.contract(dy, y, x!), () => b.contract(dy, x!, y)],

  ...definedRows("derivative"),

  // The transpose of a rotation has the negative angle.
  rope: ({ node, dy, b }) => [() =>
    b.make("rope", [dy, node.inputs[1]!], {
      ...node.params,
      inverseFrequencies: node.params.inverseFrequencies.map((f) => -f),
    })],

  embedding: (
    { node: { inputs: [table, ids], params }, dy, b },
  ) => [() => b.make("scatterAdd", [dy, ids!], params, table!)],

  scatterAdd: (
    { node: { inputs: [rows, ids], params: { over } }, dy, b },
  ) => [
    () => b.ordered(b.make("embedding", [dy, ids!], { over }), rows!.axes),
  ],

  rename: (
    { node: { params: { from, to } }, dy, b },
  ) => [() => b.make("rename", [dy], { from: to, to: from })],

  split: (
    { node: { params: { axis, into } }, dy, b },
  ) => [() => b.make("merge", [dy], { axes: into, to: axis })],

  merge: (
    { node: { params: { axes, to } }, dy, b },
  ) => [() => b.make("split", [dy], { axis: to, into: axes })],

  slice: (
    { node: { params }, dy, b },
  ) => [
    () =>
      b.make("dilate", [dy], { ...params, axis: params.to, to: params.axis }),
  ],

  dilate: (
    { node: { params }, dy, b },
  ) => [
    () =>
      b.make("slice", [dy], { ...params, axis: params.to, to: params.axis }),
  ],

  concat: ({ node, dy, b }) => {
    const { axes, to } = node.params;
    let start = 0;
    return axes.map((axis) => {
      const part = { axis: to, start, step: 1, to: axis };
      start += b.context.axes[axis]!.size;
      return () => b.make("slice", [dy], part);
    });
  },

  transpose: ({ node, dy, b }) => [() => b.ordered(dy, node.inputs[0]!.axes)],

  cast: (
    { node: { inputs: [x] }, dy, b },
  ) => [() => b.cast(dy, x!.dtype)],

  topK: ({ node, dy, b }) => {
    const [x] = node.inputs;
    const { over } = node.params;
    return [() =>
      b.make(
        "scatterAdd",
        [
          dy,
          b.make("tupleElement", [node], { field: "indices" }),
        ],
        { over },
        x!,
      )];
  },

  route: routeDerivative,

  choices: ({ dy }) => [undefined, () => dy],

  tupleElement: ({ node, dy }) => {
    const { field } = node.params;
    return [field === "values" || field === "weight" ? () => dy : undefined];
  },

  dispatch: dispatchDerivative,
  combine: combineDerivative,
  combineTranspose: onceOnly,
  ...ofExpanded(placed),
  optimizationBarrier: ({ dy }) => [() => dy],
  ...ofCollectives(() => placed),
  cacheWrite: cacheWriteDerivative,
  attention: attentionDerivative,
  attentionSum: onceOnly,
  attentionGrad: onceOnly,
};
