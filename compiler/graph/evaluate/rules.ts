/** The reference of each primitive. A primitive without one does not compile. */

import { ofCollectives } from "../collectives.ts";
import { attend, embed, rotate, writeCache } from "./position.ts";
import { attendBack, scatterAddRows, sumScores } from "./backward.ts";
import { alongRows, operands, shapeFrom, total } from "./rows.ts";
import { definedRows } from "../primitives/mod.ts";
import { combineRows, dispatchRows, returnedRows } from "./dispatch.ts";
import {
  givenRouting,
  largest,
  marks,
  type Routed,
  routeTokens,
} from "./routing.ts";
import {
  type Node,
  type NodeOf,
  ofExpanded,
  type Primitive,
} from "../graph.ts";
import { invariant } from "../../../spec/errors.ts";
import { orderedSum, segmentsOf } from "../../../spec/numerics.ts";
import {
  count,
  lengthOf,
  put,
  rounding,
  type Shown,
  strides,
  type Value,
  visit,
  zeros,
} from "./value.ts";
import { routeOperandAxes } from "../routing/presets.ts";

/** Result of a node: a tensor or a routing. */
export type Result = Value | Routed;

/** Whether a result is a routing. */
export function isRouted(result: Result): result is Routed {
  return "experts" in result;
}

/** Context of a reference besides its node. */
export interface Context {
  /** The length of an axis in this run. */
  readonly lengthOf: (axis: string) => number;
  /** Whether an axis has one length in every run. */
  readonly isFixed: (axis: string) => boolean;
  /** The result of an operand. */
  readonly result: (node: Node) => Result;
  /** The result of an operand that is a tensor. */
  readonly value: (node: Node) => Value;
  /** The given value of an input, parameter or state. */
  readonly leaf: (
    node: Shown<"input"> | Shown<"param"> | Shown<"state">,
  ) => Value;
}

function routing(node: Node, context: Context): Routed {
  const result = context.result(node);
  invariant(isRouted(result), "a routing is expected");
  return result;
}

/** The same elements under other axes. */
function relabel(node: Shown, value: Value, shape: readonly number[]): Value {
  return { axes: node.axes, shape, dtype: node.dtype, data: value.data };
}

/** The elements of the operand. */
function sameElements(
  node: Shown & Pick<Node, "inputs">,
  context: Context,
): Value {
  const [x] = operands(node, context);
  return relabel(node, x!, x!.shape);
}

/** The reference of each primitive. */
export const REFERENCE: {
  readonly [P in Primitive]: (node: Shown<P>, context: Context) => Result;
} = {
  input: (node, context) => context.leaf(node),
  param: (node, context) => context.leaf(node),
  state: (node, context) => context.leaf(node),

  map: (node, context) => {
    const values = operands(node, context);
    const result = zeros(node.axes, shapeFrom(node, values), node.dtype);
    const offsets = values.map((value) => strides(value, node.axes));
    const isInteger = node.dtype === "i32" || node.dtype === "u32";
    visit(result.shape, offsets, (at, n) => {
      const xs = at.map((offset, i) => values[i]!.data[offset]!);
      // A product of integers can lose its low bits in a double.
      const product = isInteger && node.params.op === "mul" && xs.length === 2;
      put(
        result,
        n,
        product ? Math.imul(xs[0]!, xs[1]!) : node.params.lambda.js(...xs),
      );
    });
    return result;
  },

  dot: (node, context) => {
    const values = operands(node, context);
    const { over, segments: given } = node.params;
    const result = zeros(node.axes, shapeFrom(node, values), node.dtype);
    const [a, b] = values as [Value, Value];
    // Products in row-major order over the contracted axes, as in kernels.
    const terms: (readonly [left: number, right: number])[] = [];
    visit(
      over.map((axis) => lengthOf(a, axis)),
      [strides(a, over), strides(b, over)],
      ([p, q]) => terms.push([p!, q!]),
    );
    const round = rounding(result);
    const fixed = over.every(context.isFixed) ? segmentsOf(terms.length) : 1;
    const options = { segments: given ?? fixed, round };
    visit(
      result.shape,
      [strides(a, node.axes), strides(b, node.axes)],
      ([i, j], n) => {
        const step = (k: number, sum: number) => {
          const [p, q] = terms[k]!;
          return round(round(a.data[i! + p]! * b.data[j! + q]!) + sum);
        };
        put(result, n, orderedSum(terms.length, step, options));
      },
    );
    return result;
  },

  reduce: (node, context) => {
    const [x] = operands(node, context);
    const { kind, over } = node.params;
    const result = zeros(node.axes, shapeFrom(node, [x!]), node.dtype);
    alongRows(x!, over, (row, index) => {
      put(
        result,
        index,
        kind === "max"
          ? row.reduce((a, b) => Math.max(a, b), -Infinity)
          : total(row) / (kind === "mean" ? Math.max(row.length, 1) : 1),
      );
    });
    return result;
  },

  reduceSum: (node, context) => {
    const values = operands(node, context);
    const { over } = node.params;
    const result = zeros(node.axes, shapeFrom(node, values), node.dtype);
    const [x] = values;
    const inner = over.map((axis) => lengthOf(x!, axis));
    const along = values.map((value) => strides(value, over));
    const outer = values.map((value) => strides(value, node.axes));
    visit(result.shape, outer, (starts, n) => {
      let sum = 0;
      visit(inner, along, (offsets) => {
        let product = 1;
        values.forEach(({ data }, i) =>
          product *= data[starts[i]! + offsets[i]!]!
        );
        sum += product;
      });
      put(result, n, sum);
    });
    return result;
  },

  ...definedRows("reference"),

  rope: (node, context) => {
    const [x, position] = operands(node, context);
    return rotate(node, x!, position!);
  },

  embedding: (node, context) => {
    const [table, ids] = operands(node, context);
    return embed(node, table!, ids!);
  },

  scatterAdd: (node, context) => {
    const [rows, ids] = operands(node, context);
    return scatterAddRows(
      node,
      [rows!, ids!],
      node.axes.map((axis) =>
        axis === node.params.over
          ? context.lengthOf(axis)
          : lengthOf(rows!, axis)
      ),
    );
  },

  rename: sameElements,

  split: (node, context) => {
    const [x] = operands(node, context);
    const { axis, into } = node.params;
    const shape = x!.axes.flatMap((name, i) =>
      name === axis ? into.map(context.lengthOf) : [x!.shape[i]!]
    );
    return relabel(node, x!, shape);
  },

  merge: (node, context) => {
    const [x] = operands(node, context);
    const { axes } = node.params;
    const at = x!.axes.indexOf(axes[0]!);
    const end = at + axes.length;
    const { shape } = x!;
    return relabel(node, x!, [
      ...shape.slice(0, at),
      count(shape.slice(at, end)),
      ...shape.slice(end),
    ]);
  },

  slice: (node, context) => {
    const [x] = operands(node, context);
    const { axis, start, step, to } = node.params;
    const shape = x!.axes.map((name, i) =>
      name === axis ? context.lengthOf(to) : x!.shape[i]!
    );
    const result = zeros(node.axes, shape, node.dtype);
    const along = strides(x!, [axis])[0]!;
    const from = start * along;
    const steps = strides(x!, x!.axes).map((stride, i) =>
      x!.axes[i] === axis ? stride * step : stride
    );
    visit(shape, [steps], ([offset], n) => {
      result.data[n] = x!.data[from + offset!]!;
    });
    return result;
  },

  dilate: (node, context) => {
    const [x] = operands(node, context);
    const { axis, start, step, to } = node.params;
    const shape = x!.axes.map((name, i) =>
      name === axis ? context.lengthOf(to) : x!.shape[i]!
    );
    const result = zeros(node.axes, shape, node.dtype);
    const along = strides(result, [to])[0]!;
    const steps = strides(result, node.axes).map((stride, i) =>
      node.axes[i] === to ? stride * step : stride
    );
    visit(x!.shape, [steps], ([offset], n) => {
      result.data[start * along + offset!] = x!.data[n]!;
    });
    return result;
  },

  concat: (node, context) => {
    const values = operands(node, context);
    const at = node.axes.indexOf(node.params.to);
    const shape = node.axes.map((_, i) =>
      i === at
        ? total(values.map((value) => value.shape[i]!))
        : values[0]!.shape[i]!
    );
    const result = zeros(node.axes, shape, node.dtype);
    const steps = strides(result, node.axes);
    let start = 0;
    for (const value of values) {
      visit(value.shape, [steps], ([offset], n) => {
        result.data[start + offset!] = value.data[n]!;
      });
      start += value.shape[at]! * steps[at]!;
    }
    return result;
  },

  transpose: (node, context) => {
    const [x] = operands(node, context);
    const result = zeros(node.axes, shapeFrom(node, [x!]), node.dtype);
    visit(result.shape, [strides(x!, node.axes)], ([offset], n) => {
      result.data[n] = x!.data[offset!]!;
    });
    return result;
  },

  cast: (node, context) => {
    const [x] = operands(node, context);
    const result = zeros(node.axes, x!.shape, node.dtype);
    const isInteger = node.dtype === "i32" || node.dtype === "u32";
    x!.data.forEach((v, i) => put(result, i, isInteger ? Math.trunc(v) : v));
    return result;
  },

  topK: (node, context) => {
    // A tuple: `tupleElement` selects from the operand again. Only the operand is stored.
    const [x] = operands(node, context);
    return x!;
  },

  route: (node, context) => {
    const { rule, tokens, expert, leadingGroup, operands: names } = node.params;
    const axes = routeOperandAxes(node.params);
    const [logits, ...rest] = operands(node, context);
    const given = names.map((name, i) =>
      [name, reorder(rest[i]!, axes[name])] as const
    );
    return routeTokens(rule, reorder(logits!, [...tokens, expert]), {
      ...leadingGroup === undefined ? {} : { group: "leading" },
      ...Object.fromEntries(given),
    });
  },

  choices: (node, context) =>
    givenRouting(
      operands(node, context),
      context.lengthOf(node.params.expert),
    ),

  tupleElement: (node, context) => {
    const tuple = node.inputs[0]!;
    if (tuple.primitive === "topK") return topKPart(node, tuple, context);
    const routed = routing(tuple, context);
    const { field } = node.params;
    switch (field) {
      case "index":
      case "weight":
      case "slot": {
        const shape = [...routed.shape, routed.k];
        const result = zeros(node.axes, shape, node.dtype);
        routed[field].forEach((v, i) => put(result, i, v));
        return result;
      }
      case "chosen":
      case "first":
      case "kept":
      case "settled": {
        const shape = [...routed.shape, routed.experts];
        const result = zeros(node.axes, shape, node.dtype);
        marks(routed, field).forEach((v, i) => put(result, i, v));
        return result;
      }
      default:
        throw new Error(`internal: a routing has no part '${field}'`);
    }
  },

  dispatch: (node, context) =>
    dispatchRows(
      node,
      context.value(node.inputs[0]!),
      routing(node.inputs[1]!, context),
    ),

  combine: (node, context) =>
    combineRows(
      node,
      context.value(node.inputs[0]!),
      routing(node.inputs[1]!, context),
    ),

  combineTranspose: (node, context) =>
    returnedRows(
      node,
      context.value(node.inputs[0]!),
      routing(node.inputs[1]!, context),
    ),

  ...ofExpanded((): Result => {
    throw new Error(
      "Cannot evaluate parts of a dispatch: the evaluator has one rank. Evaluate the graph before it is expanded",
    );
  }),

  optimizationBarrier: sameElements,

  // The evaluator is one rank, which has every term of a sum.
  ...ofCollectives(() => sameElements),

  cacheWrite: (node, context) => {
    const [state, value, sequence, position] = operands(node, context);
    const { sparse = false } = node.params;
    return writeCache(state!, value!, {
      sequence: sequence!,
      position: position!,
      sparse,
    });
  },

  attention: (node, context) =>
    attend(
      node,
      operands(node, context),
      context.lengthOf(node.params.valueDim),
    ),

  attentionSum: (node, context) => sumScores(node, operands(node, context)),

  attentionGrad: (node, context) => attendBack(node, operands(node, context)),
};

/** Transposes a value. */
function reorder(value: Value, axes: readonly string[]): Value {
  const shape = axes.map((axis) => lengthOf(value, axis));
  const result = zeros(axes, shape, value.dtype);
  visit(shape, [strides(value, axes)], ([offset], n) => {
    result.data[n] = value.data[offset!]!;
  });
  return result;
}

/** Values or indices of a top-k. */
function topKPart(
  node: Shown<"tupleElement">,
  tuple: NodeOf<"topK">,
  context: Context,
): Value {
  const x = context.value(tuple);
  const { over, k } = tuple.params;
  const rest = node.axes.slice(0, -1).map((axis) => lengthOf(x, axis));
  const result = zeros(node.axes, [...rest, k], node.dtype);
  alongRows(x, over, (row, index) => {
    largest(row, k).forEach((i, j) => {
      put(
        result,
        index * k + j,
        node.params.field === "indices" ? i : row[i]!,
      );
    });
  });
  return result;
}
