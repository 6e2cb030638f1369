/** Routers: scores, choices, weights, and slots with limited capacity. */

import { invariant, ModelError } from "../../../../spec/errors.ts";
import { storedDType } from "../../../../spec/dtype.ts";
import {
  dropsChoices,
  type Node,
  type NodeOf,
  type RouteOperand,
} from "../../../graph/graph.ts";
import {
  isMark,
  type Mark,
  routeOperandAxes,
} from "../../../graph/routing/presets.ts";
import { usersOf } from "../../../graph/users.ts";
import { elementwiseGrid } from "../../../../spec/kernel/elementwise.ts";
import { marks } from "../../../kernels/routing/capacity.ts";
import { kernelFrom } from "../../../kernels/kernel.ts";
import { router, type RouterOptions } from "../../../kernels/routing/router.ts";
import {
  comparesExperts,
  routerByLanes,
} from "../../../kernels/routing/router_lanes.ts";
import { rowsGrid } from "../../../kernels/rows.ts";
import {
  MAX_SORTED_K,
  topK,
  topKGrid,
  topKPart,
  topKParts,
} from "../../../kernels/top_k.ts";
import { groupLength, lowerCapacity } from "./capacity.ts";
import { addLaunch, addScratch, type Lowering, sizeOf } from "../context.ts";
import { rowMajorBuffer } from "../elementwise.ts";
import type { RouteResults } from "../lowering.ts";
import { tokenCount } from "../tokens.ts";

/** The results of a lowered route. */
export function routeResults(lowering: Lowering, node: Node): RouteResults {
  const results = lowering.values.results.get(node);
  invariant(results, "a routing is used before it is made");
  return results;
}

/** Chooses experts and computes weights. With a capacity, assigns slots and recomputes weights. */
export function lowerRoute(lowering: Lowering, node: NodeOf<"route">): void {
  const { rule, expert, tokens, choice } = node.params;
  const operands = operandBuffers(lowering, node);
  const axes = [...tokens, choice];
  const index = addScratch(lowering, "index", "i32", axes);
  const weight = addScratch(lowering, "weight", "f32", axes);
  // The router kernel itself drops only padding.
  const slot = dropsChoices(node)
    ? addScratch(lowering, "slot", "i32", axes)
    : undefined;
  const first = rule.capacity?.prioritised
    ? addScratch(lowering, "first", "f32", tokens)
    : undefined;
  const logits = node.inputs[0]!;
  const experts = lowering.placed.axes[expert]!.size;
  const options: RouterOptions = {
    name: `router_${experts}`,
    experts,
    rule,
    tokens: tokenCount(lowering, tokens),
    group: groupLength(lowering, node),
    operands: node.params.operands.filter((name) =>
      name !== "group" && name !== "random"
    ),
  };
  const count = sizeOf(lowering, tokens);
  const byLanes = lowering.options.tuning.wideRows === true &&
    comparesExperts(options);
  const bindings = {
    ...operands,
    index,
    weight,
    logits: rowMajorBuffer(lowering, logits, [...tokens, expert]),
    ...slot ? { slot } : {},
    ...first ? { first } : {},
  };
  const waits = byLanes && !slot && isAssignedNext(lowering, node);
  if (!waits) {
    addLaunch(
      lowering,
      node,
      kernelFrom(byLanes ? routerByLanes : router, options),
      {
        bindings,
        workgroups: byLanes ? rowsGrid(count) : elementwiseGrid(count),
      },
    );
  }
  const results = {
    index,
    weight,
    ...slot ? { slot } : {},
    ...waits ? { pending: { node, options, bindings, count } } : {},
  };
  lowering.values.results.set(
    node,
    rule.capacity
      ? lowerCapacity(lowering, node, {
        index,
        weight,
        slot: slot!,
        operands,
        ...first ? { first } : {},
      })
      : results,
  );
}

/** Whether choices are numbered once, before another step reads the routing, or computes a mask of it. */
function isAssignedNext({ model: { graph } }: Lowering, route: Node): boolean {
  const users = usersOf(graph).get(route) ?? [];
  const [assign, ...others] = users.filter((user) =>
    user.primitive === "assign"
  );
  if (!assign || others.length > 0) return false;
  const isOf = (node: Node) =>
    node.primitive === "tupleElement" && node.inputs[0] === route;
  const reads = (node: Node) =>
    node.primitive === "tupleElement"
      ? isOf(node) && isMark(node.params.field)
      : node.inputs.some((input) => input === route || isOf(input));
  const { nodes } = graph;
  const at = nodes.indexOf(route);
  return !nodes.slice(at + 1, nodes.indexOf(assign, at)).some(reads);
}

/** The buffers of a router's operands by name. */
function operandBuffers(
  lowering: Lowering,
  node: NodeOf<"route">,
): { readonly [O in RouteOperand]?: string } {
  const { operands } = node.params;
  const axes = routeOperandAxes(node.params);
  return Object.fromEntries(
    operands.map((name, i) => [
      name,
      rowMajorBuffer(lowering, node.inputs[i + 1]!, axes[name]),
    ]),
  );
}

/** The largest values and their indices. */
export function lowerTopK(lowering: Lowering, node: NodeOf<"topK">): void {
  const [x] = node.inputs as [Node];
  const { over, k, axis } = node.params;
  if (lowering.model.dispatched.has(node)) {
    throw new ModelError(
      `Cannot topK '${
        x.axes.join(" ")
      }': it is a dispatched value. Choose before the dispatch, or after the combine`,
      node.span,
    );
  }
  const rows = x.axes.filter((name) => name !== over);
  const axes = [...rows, axis];
  const index = addScratch(lowering, "indices", "i32", axes);
  const weight = addScratch(lowering, "values", storedDType(x.dtype), axes);
  let count = lowering.placed.axes[over]!.size;
  const options = { k, rows: tokenCount(lowering, rows) };
  const buffer = rowMajorBuffer(lowering, x, [...rows, over]);
  const size = sizeOf(lowering, rows);
  lowering.values.results.set(node, { index, weight });
  if (lowering.options.tuning.wideRows !== true || k > MAX_SORTED_K) {
    const kernel = topK({ ...options, name: `topk_${k}`, count });
    const bindings = { x: buffer, values: weight, indices: index };
    return addLaunch(lowering, node, kernel, {
      bindings,
      workgroups: rowsGrid(size),
    });
  }
  // The best of the parts become the elements of the next launch.
  let from = { values: buffer, indices: "" };
  for (let parts = 0; parts !== 1;) {
    parts = topKParts(count);
    const kept = [...rows, { axis: "part candidate", size: parts * k }];
    const to = parts === 1 ? { values: weight, indices: index } : {
      values: addScratch(lowering, "part values", "f32", kept),
      indices: addScratch(lowering, "part indices", "i32", kept),
    };
    const indexed = from.indices !== "";
    const name = `topk_${k}_of_${count}`;
    addLaunch(
      lowering,
      node,
      topKPart({ ...options, name, count, indexed }),
      {
        bindings: { x: from.values, candidates: from.indices, ...to },
        workgroups: topKGrid(count, size),
      },
    );
    from = to;
    count = parts * k;
  }
}

/** Storage of a part of a routing or topK. Masks of experts are computed on demand. */
export function lowerPart(
  lowering: Lowering,
  node: NodeOf<"tupleElement">,
): void {
  const source = node.inputs[0]!;
  const { field } = node.params;
  const { index, weight, slot } = routeResults(lowering, source);
  const buffer = source.primitive === "route" && isMark(field)
    ? lowerMarks(lowering, source, field)
    : field === "index" || field === "indices"
    ? index
    : field === "slot"
    ? slot
    : weight;
  invariant(buffer, `a routing without capacity has no '${field}'`);
  lowering.values.storages.set(node, {
    buffer,
    dtype: lowering.draft.buffers.get(buffer)!.dtype,
    axes: node.axes,
  });
}

/** Masks of the experts chosen by each token: all, first choices, or kept ones. */
function lowerMarks(
  lowering: Lowering,
  node: NodeOf<"route">,
  field: Mark,
): string {
  const { rule, expert, tokens } = node.params;
  const { index, slot } = routeResults(lowering, node);
  const { mask } = operandBuffers(lowering, node);
  const experts = lowering.placed.axes[expert]!.size;
  const axes = [...tokens, expert];
  const result = addScratch(lowering, field, "f32", axes);
  const dropped = slot === undefined || field === "chosen" || field === "first"
    ? "others"
    : field === "kept"
    ? "nothing"
    : "expert 0";
  addLaunch(
    lowering,
    node,
    marks({
      name: `marks_${experts}`,
      experts,
      rule,
      tokens: tokenCount(lowering, tokens),
      choices: field === "first" ? 1 : rule.topK,
      dropped,
      masked: dropped !== "nothing" && mask !== undefined,
    }),
    {
      bindings: {
        index,
        marks: result,
        ...slot ? { slot } : {},
        ...mask ? { mask } : {},
      },
      workgroups: elementwiseGrid(sizeOf(lowering, tokens)),
    },
  );
  return result;
}
