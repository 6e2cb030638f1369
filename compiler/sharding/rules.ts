/**
 * The sharding rule of each primitive: its role along each axis of its operands, the operand that it only moves, and
 * its linear operands. Together with the definitions of primitives, this is all that `shard` knows of a primitive.
 */

import { ofCollectives } from "../graph/collectives.ts";
import type { Node, NodeOf, Primitive } from "../graph/graph.ts";
import { isRouting, ofExpanded } from "../graph/graph.ts";
import { looksAtGroup, routeOperand } from "../graph/routing/presets.ts";
import { LINEAR } from "../graph/gradients/linear.ts";
import { definedRows } from "../graph/primitives/mod.ts";
import {
  type Known,
  ofCache,
  replicatedOver,
  type Role,
  type Rule,
} from "../graph/sharding_rule.ts";
import type { Over } from "../graph/sharding.ts";

function pass(): Role {
  return "pass";
}

const leaf = { role: pass, linear: LINEAR.never };

/** Heads, and the key heads that they read, are sharded as placed: a rank has all that its heads need. */
function attends(
  node: NodeOf<"attention"> | NodeOf<"attentionSum">,
  { operand, axis }: { readonly operand: number; readonly axis: string },
  known: Known,
): Role {
  const { token, kvHead, head } = node.params;
  const sequence = node.inputs[RULES[node.primitive].sequence!]!;
  if (axis === token) return known.sequenceOver(node, sequence, axis);
  if (axis === head || axis === kvHead) return known.placedOver(axis);
  const { sinks, selected, entries } = node.params;
  const second = 5 + Number(sinks) + Number(selected !== undefined);
  const cache = operand === 1 ||
    node.primitive === "attention" &&
      (operand === 2 || entries !== undefined && operand === second);
  return cache ? ofCache(axis, known) : "replicated";
}

/** The rules. A primitive without one does not compile. */
export const RULES: { readonly [P in Primitive]: Rule<P> } = {
  input: leaf,
  param: leaf,
  state: leaf,
  map: { role: pass, linear: LINEAR.lambda },
  cast: { role: pass, linear: ({ dtype }) => dtype === "f32" },
  transpose: { role: pass, moves: 0, linear: LINEAR.first },
  optimizationBarrier: {
    role: (_, { operand }) => operand === 0 ? "pass" : "local",
    moves: 0,
    linear: LINEAR.first,
  },
  dot: {
    // Dynamic lengths cannot be divided into equal segments.
    role: ({ params: { over } }, { axis }, known) =>
      !over.includes(axis)
        ? "pass"
        : known.isRagged(axis)
        ? "replicated"
        : "reduce",
    linear: LINEAR.oneOf,
  },
  reduce: {
    role: ({ params: { over } }, { axis }) =>
      axis === over ? "replicated" : "pass",
    linear: ({ params: { kind } }) => kind !== "max",
  },
  reduceSum: {
    role: ({ params: { over } }, { axis }) =>
      over.includes(axis) ? "reduce" : "pass",
    linear: LINEAR.oneOf,
  },
  ...definedRows("sharding"),
  rope: {
    role: ({ params: { over } }, { axis }) =>
      axis === over ? "replicated" : "pass",
    linear: LINEAR.first,
  },
  embedding: {
    role: ({ params: { over }, inputs: [, ids] }, { operand, axis }, known) => {
      if (operand !== 0 || axis !== over) return "pass";
      // Each row is on one rank; the other ranks add nothing.
      if (!known.isRagged(axis)) return "reduce";
      return known.itemsOver(axis, ids!) ?? "replicated";
    },
    linear: LINEAR.first,
  },
  scatterAdd: {
    role: ({ params: { over, replicated }, axes }, { axis }) =>
      axis === over || replicated && !axes.includes(axis)
        ? "replicated"
        : axes.includes(axis)
        ? "pass"
        : "reduce",
    linear: LINEAR.first,
  },
  rename: {
    role: ({ params: { from } }, { axis }, known) =>
      axis === from && known.isRagged(axis) ? "replicated" : "pass",
    result: ({ params: { from, to } }, over) => ({ [to]: over[from] ?? [] }),
    moves: 0,
    linear: LINEAR.first,
  },
  split: {
    role: ({ params: { axis: from } }, { axis }, known) =>
      axis === from && known.isRagged(axis) ? "replicated" : "pass",
    result: ({ params: { axis, into } }, over, known) => ({
      [known.outermost(into)]: over[axis] ?? [],
    }),
    moves: 0,
    linear: LINEAR.first,
  },
  merge: {
    role: ({ params: { axes } }, { axis }, known) =>
      axes.includes(axis) &&
        (axis !== known.outermost(axes) || known.isRagged(axis))
        ? "replicated"
        : "pass",
    result: ({ params: { axes, to } }, over, known) => ({
      [to]: over[known.outermost(axes)] ?? [],
    }),
    moves: 0,
    linear: LINEAR.first,
  },
  slice: {
    role: ({ params: { axis: from } }, { axis }) =>
      axis === from ? "replicated" : "pass",
    moves: 0,
    linear: LINEAR.first,
  },
  concat: {
    role: ({ params: { axes } }, { axis }) =>
      axes.includes(axis) ? "replicated" : "pass",
    linear: LINEAR.together,
  },
  dilate: {
    // If every item has a distinct index and the result contains nothing else, shards stay shards.
    role: ({ params }, { axis }, known) =>
      axis === params.axis && !known.fills(params) ? "replicated" : "pass",
    result: ({ params }, over, known) =>
      known.fills(params) ? { [params.to]: over[params.axis] ?? [] } : {},
    linear: LINEAR.first,
  },
  topK: replicatedOver(),
  route: {
    role: (node, { axis }, known) => {
      const { rule, expert, tokens, leadingGroup } = node.params;
      if (axis === expert) return "replicated";
      if (!tokens.includes(axis) || !looksAtGroup(rule)) return "pass";
      if (axis === leadingGroup) return "pass";
      return known.isGroupTogether(axis, routeOperand(node, "group"))
        ? "pass"
        : "replicated";
    },
    linear: LINEAR.never,
  },
  choices: { role: pass, linear: LINEAR.never },
  tupleElement: { role: pass, linear: LINEAR.never },
  dispatch: {
    role: (node, { axis }, known) =>
      tokensOf(node).includes(axis)
        ? known.tokensOver(node.inputs[1]!, axis)
        : "pass",
    result: (node, _, known) => rowsOver(node.inputs[1]!, known),
    linear: LINEAR.never,
  },
  combine: {
    role: returnsRows,
    result: returnedOver,
    terms: returnedTerms,
    linear: LINEAR.never,
  },
  combineTranspose: {
    role: returnsRows,
    result: returnedOver,
    terms: returnedTerms,
    linear: LINEAR.never,
  },
  ...ofExpanded({ role: pass, linear: LINEAR.never }),
  ...ofCollectives(() => ({ role: pass, linear: LINEAR.never })),
  cacheWrite: {
    role: (node, { operand, axis }, known) => {
      if (operand === 0 && node.axes.indexOf(axis) < 2) {
        return ofCache(axis, known);
      }
      const by = node.inputs[2]!;
      return by.axes.includes(axis)
        ? known.sequenceOver(node, by, axis)
        : "pass";
    },
    sequence: 2,
    linear: LINEAR.never,
  },
  attention: { role: attends, sequence: 3, linear: LINEAR.never },
  attentionSum: { role: attends, sequence: 2, linear: LINEAR.never },
  attentionGrad: {
    role: (node, { operand, axis }, known) => {
      const { token, head, kvHead, of } = node.params;
      if (axis === token || axis === kvHead) return known.placedOver(axis);
      // The gradient of keys and values has a term from each head that reads them.
      if (axis === head) {
        const over = known.placedOver(axis);
        return of === "query" ? over : { sum: over };
      }
      return operand === 1 || operand === 2 ? "local" : "pass";
    },
    linear: LINEAR.never,
  },
};

function tokensOf({ inputs: [, route] }: Node): readonly string[] {
  return isRouting(route) ? route.params.tokens : [];
}

/** The sharding of dispatched rows: that of their experts, and of their tokens along other mesh axes. */
function rowsOver(route: Node, known: Known): Over {
  if (!isRouting(route)) return {};
  const { expert, slot, tokens } = route.params;
  const experts = known.expertsOver(expert);
  const all = tokens.flatMap((axis) => known.tokensOver(route, axis));
  return {
    [expert]: experts,
    [slot]: all.filter((name) => !experts.includes(name)),
  };
}

/** Rows stay with their experts; the routing determines the sharding of tokens. */
function returnsRows(
  node: NodeOf<"combine"> | NodeOf<"combineTranspose">,
  { operand, axis }: { readonly operand: number; readonly axis: string },
  known: Known,
): Role {
  if (operand === 1) {
    return tokensOf(node).includes(axis)
      ? known.tokensOver(node.inputs[1]!, axis)
      : "pass";
  }
  return node.axes.includes(axis) ? "pass" : "local";
}

function returnedOver(
  node: NodeOf<"combine"> | NodeOf<"combineTranspose">,
  _: Over,
  known: Known,
): Over {
  return Object.fromEntries(
    tokensOf(node).map((
      axis,
    ) => [axis, known.tokensOver(node.inputs[1]!, axis)]),
  );
}

/** If tokens are replicated while experts are sharded, a rank has only the rows of its own experts. */
function returnedTerms(
  node: NodeOf<"combine"> | NodeOf<"combineTranspose">,
  known: Known,
): readonly string[] {
  const route = node.inputs[1]!;
  if (!isRouting(route)) return [];
  const { expert, tokens } = route.params;
  const apart = tokens.flatMap((axis) => known.tokensOver(route, axis));
  return known.expertsOver(expert).filter((name) => !apart.includes(name));
}
