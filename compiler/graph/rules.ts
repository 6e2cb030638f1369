/**
 * The rule of each primitive: maps operands and parameters to axes and dtype, or to an error. Ops create nodes through
 * these rules.
 */

import { type Collective, ofCollectives } from "./collectives.ts";
import type { DType } from "../../spec/dtype.ts";
import {
  alongAxis,
  fail,
  operand,
  replaced,
  type RuleInput,
  sameAxes,
  type TensorType,
  wantAxis,
  wantFloat,
  wantFree,
  wantType,
} from "./operands.ts";
import { definedRows } from "./primitives/mod.ts";
import { OPERAND_DTYPES, ruleProblem } from "./routing/check_rule.ts";
import { isMark } from "./routing/presets.ts";
import { messages as say, without } from "./messages.ts";
import {
  isRouting,
  type Node,
  ofExpanded,
  type Primitive,
  type RoutingNode,
} from "./graph.ts";

/** The axes of an elementwise result. */
function broadcast(a: readonly string[], b: readonly string[]) {
  if (without(b, a).length === 0) return a;
  if (without(a, b).length === 0) return b;
  return fail(say.broadcast(a, b));
}

/** Where `part` of `axes` starts, or -1. */
function adjacent(axes: readonly string[], part: readonly string[]): number {
  return axes.findIndex((_, i) =>
    part.every((axis, j) => axes[i + j] === axis)
  );
}

/** The operand's type with one axis renamed. */
function renamed(
  op: string,
  inputs: readonly Node[],
  from: string,
  to: string,
): TensorType {
  const x = operand(inputs, 0);
  wantAxis(op, x, from);
  wantFree(op, x, [to]);
  return { axes: replaced(x.axes, from, [to]), dtype: x.dtype };
}

function routed(node: Node): RoutingNode {
  return isRouting(node)
    ? node
    : fail("Cannot dispatch or combine: the second operand is not a routing");
}

/** The rules. A primitive without one does not compile. */
export const RULES: {
  readonly [P in Primitive]: (input: RuleInput<P>) => TensorType;
} = {
  input: ({ given }) => given,
  param: ({ given, params }) => {
    if (params.stack !== undefined && given.axes[0] !== params.stack) {
      fail(say.stack(given.axes, params.stack));
    }
    return given;
  },
  state: ({ given }) => given,

  map: ({ inputs, params }) => {
    const first = operand(inputs, 0);
    const axes = inputs.slice(1).reduce<readonly string[]>((all, node) => {
      wantType(params.op, node, first.dtype);
      return broadcast(all, node.axes);
    }, first.axes);
    return { axes, dtype: first.dtype };
  },

  dot: ({ inputs, params: { over } }) => {
    const [a, b] = [operand(inputs, 0), operand(inputs, 1)];
    const shared = a.axes.filter((axis) => b.axes.includes(axis));
    if (shared.length === 0) fail(say.noSharedAxis(a.axes, b.axes));
    if (over.length === 0 || without(over, shared).length > 0) {
      fail(say.dotOver(a.axes, b.axes, over));
    }
    wantFloat("dot", a);
    wantType("dot", b, a.dtype);
    return {
      axes: [...without(a.axes, over), ...without(b.axes, a.axes)],
      dtype: a.dtype,
    };
  },

  reduce: ({ inputs, params: { kind, over } }) => {
    const x = alongAxis(kind, inputs, over);
    return { axes: without(x.axes, [over]), dtype: x.dtype };
  },

  reduceSum: ({ inputs, params: { over } }) => {
    const [x, y] = [operand(inputs, 0), inputs[1]];
    const lost = y ? x.axes.filter((axis) => y.axes.includes(axis)) : x.axes;
    if (over.length === 0 || without(over, lost).length > 0) {
      fail(say.dotOver(x.axes, y?.axes ?? x.axes, over));
    }
    wantFloat("sum", x);
    if (y) wantType("sum", y, x.dtype);
    return {
      axes: [...without(x.axes, over), ...without(y?.axes ?? [], x.axes)],
      dtype: x.dtype,
    };
  },

  ...definedRows("type"),

  rope: ({ inputs, params: { over } }) => {
    const x = alongAxis("rope", inputs, over);
    const position = operand(inputs, 1);
    wantType("rope", position, "i32");
    if (without(position.axes, x.axes).length > 0) {
      fail(say.position(x.axes, position.axes));
    }
    return x;
  },

  embedding: ({ inputs, params: { over } }) => {
    const [table, ids] = [operand(inputs, 0), operand(inputs, 1)];
    wantAxis("embed", table, over);
    wantType("embed", ids, "i32");
    if (ids.axes.includes(over)) fail(say.taken("embed", ids.axes, [over]));
    const rest = without(table.axes, [over, ...ids.axes]);
    return { axes: [...ids.axes, ...rest], dtype: table.dtype };
  },

  scatterAdd: ({ inputs, params: { over }, given }) => {
    const [rows, ids] = [operand(inputs, 0), operand(inputs, 1)];
    const kept = without(given.axes, [over]);
    const legal = given.axes.includes(over) && !rows.axes.includes(over) &&
      without(kept, rows.axes).length === 0 &&
      without(ids.axes, rows.axes).length === 0 &&
      without(rows.axes, [...kept, ...ids.axes]).length === 0;
    if (!legal) {
      fail(
        `Cannot scatter '${rows.axes.join(" ")}' by '${
          ids.axes.join(" ")
        }' to '${given.axes.join(" ")}' over '${over}'`,
      );
    }
    wantFloat("scatterAdd", rows);
    wantType("scatterAdd", ids, "i32");
    return { axes: given.axes, dtype: rows.dtype };
  },

  rename: ({ inputs, params: { from, to } }) =>
    renamed("rename", inputs, from, to),

  split: ({ inputs, params: { axis, into } }) => {
    const x = operand(inputs, 0);
    wantAxis("split", x, axis);
    wantFree("split", x, into);
    return { axes: replaced(x.axes, axis, into), dtype: x.dtype };
  },

  merge: ({ inputs, params: { axes, to } }) => {
    const x = operand(inputs, 0);
    const at = adjacent(x.axes, axes);
    if (at < 0) fail(say.merge(x.axes, axes));
    wantFree("merge", x, [to]);
    return {
      axes: [...x.axes.slice(0, at), to, ...x.axes.slice(at + axes.length)],
      dtype: x.dtype,
    };
  },

  slice: ({ inputs, params: { axis, to } }) =>
    renamed("slice", inputs, axis, to),

  dilate: ({ inputs, params: { axis, to } }) =>
    renamed("dilate", inputs, axis, to),

  concat: ({ inputs, params: { axes, to } }) => {
    const first = operand(inputs, 0);
    const axis = axes[0]!;
    wantAxis("concat", first, axis);
    wantFree("concat", first, [to]);
    const result = replaced(first.axes, axis, [to]);
    inputs.forEach((x, i) => {
      wantType("concat", x, first.dtype);
      if (!sameAxes(replaced(x.axes, axes[i]!, [to]), result)) {
        fail(say.concat(first.axes, x.axes, axis));
      }
    });
    return { axes: result, dtype: first.dtype };
  },

  transpose: ({ inputs, given }) => {
    const x = operand(inputs, 0);
    if (
      x.axes.length !== given.axes.length ||
      without(x.axes, given.axes).length > 0
    ) fail(say.transpose(x.axes, given.axes));
    return { axes: given.axes, dtype: x.dtype };
  },

  cast: ({ inputs, given }) => ({
    axes: operand(inputs, 0).axes,
    dtype: given.dtype,
  }),

  topK: ({ inputs, params: { over, axis } }) => {
    const x = alongAxis("topK", inputs, over);
    wantFree("topK", x, [axis]);
    return { axes: [...without(x.axes, [over]), axis], dtype: x.dtype };
  },

  route: ({ inputs, params }) => {
    const logits = operand(inputs, 0);
    const { expert, choice, slot, rule, leadingGroup, operands } = params;
    wantAxis("route", logits, expert);
    wantType("route", logits, "f32");
    wantFree("route", logits, [choice]);
    wantFree("route", logits, [slot]);
    const tokens = without(logits.axes, [expert]);
    if (!sameAxes(tokens, params.tokens)) {
      fail(say.transpose(tokens, params.tokens));
    }
    if (leadingGroup !== undefined && tokens[0] !== leadingGroup) {
      fail(
        `Cannot route '${
          logits.axes.join(" ")
        }' by group '${leadingGroup}': it is not the first axis`,
      );
    }
    const problem = ruleProblem(rule, operands);
    if (problem) fail(problem);
    const given = {
      group: tokens,
      mask: tokens,
      bias: [expert],
      noise: logits.axes,
      random: logits.axes,
      choices: [...tokens, choice],
      weights: [...tokens, choice],
    };
    for (const [i, name] of operands.entries()) {
      const value = operand(inputs, i + 1);
      wantType("route", value, OPERAND_DTYPES[name]);
      if (sameAxes(value.axes, given[name])) continue;
      fail(
        `Cannot route '${logits.axes.join(" ")}' with ${name} '${
          value.axes.join(" ")
        }': expected '${given[name].join(" ")}'`,
      );
    }
    return { axes: [...tokens, choice], dtype: "f32" };
  },

  choices: ({ inputs, params }) => {
    const { tokens, choice, slotted } = params;
    const axes = [...tokens, choice];
    const dtypes = ["i32", "f32", ...slotted ? ["i32"] : []] as DType[];
    for (const [i, dtype] of dtypes.entries()) {
      const given = operand(inputs, i);
      wantType("route", given, dtype);
      if (!sameAxes(given.axes, axes)) {
        fail(
          `Cannot route by choices '${given.axes.join(" ")}': expected '${
            axes.join(" ")
          }'`,
        );
      }
    }
    return { axes, dtype: "f32" };
  },

  tupleElement: ({ inputs, params: { field } }) => {
    const tuple = operand(inputs, 0);
    if (tuple.primitive === "topK" && field === "values") return tuple;
    if (tuple.primitive === "topK" && field === "indices") {
      return { axes: tuple.axes, dtype: "i32" };
    }
    if (tuple.primitive === "route") {
      if (isMark(field)) {
        const { tokens, expert } = tuple.params;
        return { axes: [...tokens, expert], dtype: "f32" };
      }
      if (field === "weight") return { axes: tuple.axes, dtype: "f32" };
      if (field === "index") return { axes: tuple.axes, dtype: "i32" };
      if (field === "slot") {
        const { rule, operands } = tuple.params;
        if (rule.capacity === undefined && !operands.includes("mask")) {
          fail(
            `Cannot read the slots of a routing by '${rule.preset}': it has no capacity`,
          );
        }
        return { axes: tuple.axes, dtype: "i32" };
      }
    }
    if (tuple.primitive === "choices") {
      const given = { index: 0, weight: 1, slot: 2 };
      if (field in given) {
        const i = given[field as keyof typeof given];
        if (i < tuple.inputs.length) return operand(tuple.inputs, i);
      }
    }
    return fail(`Cannot read '${field}' of a '${tuple.primitive}' node`);
  },

  dispatch: ({ inputs }) => {
    const x = operand(inputs, 0);
    const { tokens, expert, slot, rule } = routed(operand(inputs, 1)).params;
    if (rule.weighs === "input") wantFloat("dispatch", x);
    if (without(tokens, x.axes).length > 0) {
      fail(say.dispatch(x.axes, tokens));
    }
    wantFree("dispatch", x, [expert, slot]);
    if (!sameAxes(x.axes.slice(0, tokens.length), tokens)) {
      fail(say.transpose(x.axes, [...tokens, ...without(x.axes, tokens)]));
    }
    return {
      axes: [expert, slot, ...without(x.axes, tokens)],
      dtype: x.dtype,
    };
  },

  combine: ({ inputs }) => {
    const y = operand(inputs, 0);
    const { tokens, expert, slot } = routed(operand(inputs, 1)).params;
    if (y.axes[0] !== expert || y.axes[1] !== slot) {
      fail(say.combine(y.axes, expert, slot));
    }
    wantFloat("combine", y);
    wantFree("combine", y, tokens);
    return { axes: [...tokens, ...y.axes.slice(2)], dtype: y.dtype };
  },

  combineTranspose: ({ inputs }) => {
    const y = operand(inputs, 0);
    const { tokens, choice, expert, slot } = routed(operand(inputs, 1)).params;
    if (y.axes[0] !== expert || y.axes[1] !== slot) {
      fail(say.combine(y.axes, expert, slot));
    }
    wantFree("combineTranspose", y, [...tokens, choice]);
    return { axes: [...tokens, choice, ...y.axes.slice(2)], dtype: y.dtype };
  },

  ...ofExpanded(({ inputs }: RuleInput<Primitive>) => operand(inputs, 0)),

  optimizationBarrier: ({ inputs }) => operand(inputs, 0),

  ...ofCollectives((name) => ({ inputs, params }: RuleInput<Collective>) =>
    "axis" in params
      ? renamed(name, inputs, params.axis, params.to)
      : operand(inputs, 0)
  ),

  cacheWrite: ({ inputs }) => {
    const [state, value] = [operand(inputs, 0), operand(inputs, 1)];
    if (!sameAxes(state.axes.slice(2), value.axes.slice(1))) {
      fail(say.cache(value.axes, state.axes));
    }
    wantType("attend with", value, state.dtype);
    for (const at of [operand(inputs, 2), operand(inputs, 3)]) {
      wantType("attend with", at, "i32");
      if (!sameAxes(at.axes, value.axes.slice(0, 1))) {
        fail(
          `Cannot attend with sequence or position '${
            at.axes.join(" ")
          }': expected '${value.axes[0]}'`,
        );
      }
    }
    return state;
  },

  attention: ({ inputs, params }) => {
    const [q, keys, values] = [0, 1, 2].map((i) => operand(inputs, i));
    const { token, head, dim, valueDim, kvHead, context } = params;
    if (!sameAxes(q!.axes, [token, head, dim])) fail(say.query(q!.axes));
    const middle = kvHead === undefined ? [] : [kvHead];
    const caches = [[keys!, dim], [values!, params.shared ? dim : valueDim]];
    for (const [cache, last] of caches as [Node, string][]) {
      const wanted = [context, ...middle, last];
      if (!sameAxes(cache.axes.slice(1), wanted)) {
        fail(say.cache([token, ...middle, last], cache.axes));
      }
      wantType("attend with", cache, q!.dtype);
    }
    if (params.sinks) {
      const sinks = operand(inputs, 5);
      wantType("attend with", sinks, q!.dtype);
      if (!sameAxes(sinks.axes, [head])) {
        fail(
          `Cannot attend with sinks '${
            sinks.axes.join(" ")
          }': expected '${head}'`,
        );
      }
    }
    const { selected } = params;
    if (params.selectedBlock !== undefined && selected === undefined) {
      fail(
        "Cannot attend to selected blocks: no list of blocks is given. Give 'selected', or leave 'selectedBlock' out",
      );
    }
    if (selected !== undefined) {
      const list = operand(inputs, params.sinks ? 6 : 5);
      wantType("attend with", list, "i32");
      const perHead = params.selectedPerHead ? [kvHead ?? head] : [];
      const wanted = [token, ...perHead, selected];
      if (!sameAxes(list.axes, wanted)) {
        fail(
          `Cannot attend to selected positions '${
            list.axes.join(" ")
          }': expected '${wanted.join(" ")}'`,
        );
      }
      const inBlocks = params.selectedBlock !== undefined;
      if ((inBlocks || params.selectedPerHead) && params.entries) {
        fail(
          "Cannot attend to selected entries in blocks or per head: entries have one list of positions. Leave the option out",
        );
      }
      const limited = params.window !== undefined || params.chunk !== undefined;
      if (limited && params.entries === undefined) {
        fail(
          "Cannot attend to selected positions within a window or chunk: they are all that a token attends to. Leave one out",
        );
      }
    }
    if (params.entries !== undefined) {
      const first = 5 + Number(params.sinks) + Number(selected !== undefined);
      const entries = operand(inputs, first);
      const wanted = [keys!.axes[0]!, params.entries, dim];
      if (!params.shared || !sameAxes(entries.axes, wanted)) {
        fail(
          `Cannot attend to entries '${entries.axes.join(" ")}': expected '${
            wanted.join(" ")
          }'`,
        );
      }
      wantType("attend with", entries, q!.dtype);
      if (selected === undefined) {
        const last = operand(inputs, first + 1);
        wantType("attend with", last, "i32");
        if (!sameAxes(last.axes, [token])) {
          fail(
            `Cannot attend to entries up to '${
              last.axes.join(" ")
            }': expected '${token}'`,
          );
        }
      }
    }
    wantFloat("attend with", q!);
    return { axes: [token, head, valueDim], dtype: q!.dtype };
  },

  attentionSum: ({ inputs, params: { token, head } }) => ({
    axes: [token, head],
    dtype: operand(inputs, 0).dtype,
  }),

  attentionGrad: ({ inputs, params: { of } }) => {
    const operandOf = { query: 0, keys: 1, values: 2 };
    return operand(inputs, operandOf[of]);
  },
};
