/** Routers: scores, choices, weights, and slots where capacity is limited. */

import { invariant, ModelError } from "../../../spec/errors.ts";
import { storedDType } from "../../../spec/dtype.ts";
import type { Node, NodeOf } from "../../graph/graph.ts";
import { elementwiseGrid } from "../../kernels/elementwise.ts";
import { capacity, router, topK } from "../../kernels/router.ts";
import {
  addLaunch,
  addScratch,
  bufferAxes,
  LENGTHS,
  type Lowering,
  sizeOf,
  type Storage,
} from "./context.ts";
import { rowMajorBuffer } from "./elementwise.ts";
import type { RouteResults } from "./lowering.ts";
import { tokenCount } from "./tokens.ts";

/** The results of a lowered route. */
export function routeResults(lowering: Lowering, node: Node): RouteResults {
  const results = lowering.results.get(node);
  invariant(results, "a routing is used before it is made");
  return results;
}

/** Choose and weigh; where the rule has a capacity, give out slots and weigh again. */
export function lowerRoute(lowering: Lowering, node: NodeOf<"route">): void {
  const { rule, expert, tokens, choice, grouped, leadingGroup } = node.params;
  const [logits, ...rest] = node.inputs as [Node, ...Node[]];
  const group = grouped ? rest[0] : undefined;
  // Only rules with a second choice of their own look at the noise.
  const noisy = node.params.noisy && rule.capacity !== undefined;
  const noise = noisy ? rest[grouped ? 1 : 0] : undefined;
  const bias = node.params.biased ? rest.at(-1) : undefined;
  const experts = lowering.placed.axes[expert]!.size;
  const axes = bufferAxes(lowering, [...tokens, choice]);
  const index = addScratch(lowering, "index", "i32", axes);
  const weight = addScratch(lowering, "weight", "f32", axes);
  const count = tokenCount(lowering, tokens);
  addLaunch(
    lowering,
    node,
    router({
      ...{ name: `router_${experts}`, experts, rule, tokens: count, noisy },
      biased: bias !== undefined,
    }),
    {
      bindings: {
        lengths: LENGTHS,
        logits: rowMajorBuffer(lowering, logits, [...tokens, expert]),
        ...(noise
          ? { noise: rowMajorBuffer(lowering, noise, [...tokens, expert]) }
          : {}),
        ...(bias ? { bias: rowMajorBuffer(lowering, bias, [expert]) } : {}),
        index,
        weight,
      },
      workgroups: elementwiseGrid(sizeOf(lowering, tokens)),
    },
  );
  if (!rule.capacity) {
    lowering.results.set(node, { index, weight });
    return;
  }
  const slot = addScratch(lowering, "slot", "i32", axes);
  const kept = addScratch(lowering, "kept", "f32", axes);
  const inner = leadingGroup === undefined
    ? undefined
    : tokens.filter((axis) => axis !== leadingGroup);
  addLaunch(
    lowering,
    node,
    capacity({
      name: `capacity_${experts}`,
      experts,
      tokens: count,
      group: grouped ? "tensor" : inner ? tokenCount(lowering, inner) : count,
    }),
    {
      bindings: {
        lengths: LENGTHS,
        index,
        score: weight,
        ...(group ? { group: rowMajorBuffer(lowering, group, tokens) } : {}),
        slot,
        weight: kept,
      },
      workgroups: elementwiseGrid(sizeOf(lowering, tokens)),
    },
  );
  lowering.results.set(node, { index, weight: kept, slot });
}

/** The largest values and where they were. */
export function lowerTopK(lowering: Lowering, node: NodeOf<"topK">): void {
  const [x] = node.inputs as [Node];
  const { over, k, axis } = node.params;
  if (lowering.dispatched.has(node)) {
    throw new ModelError(
      `Cannot topK '${
        x.axes.join(" ")
      }': it is a dispatched value. Choose before the dispatch, or after the combine`,
      node.span,
    );
  }
  const rows = x.axes.filter((name) => name !== over);
  const axes = bufferAxes(lowering, [...rows, axis]);
  const index = addScratch(lowering, "indices", "i32", axes);
  const weight = addScratch(lowering, "values", storedDType(x.dtype), axes);
  addLaunch(
    lowering,
    node,
    topK({
      name: `topk_${k}`,
      count: lowering.placed.axes[over]!.size,
      k,
      rows: tokenCount(lowering, rows),
    }),
    {
      bindings: {
        lengths: LENGTHS,
        x: rowMajorBuffer(lowering, x, [...rows, over]),
        values: weight,
        indices: index,
      },
      workgroups: elementwiseGrid(sizeOf(lowering, rows)),
    },
  );
  lowering.results.set(node, { index, weight });
}

/** Where a part of a routing or topK lies. */
export function partStorage(lowering: Lowering, node: NodeOf<"part">): Storage {
  const { index, weight, slot } = routeResults(lowering, node.inputs[0]!);
  const { field } = node.params;
  const buffer = field === "index" || field === "indices"
    ? index
    : field === "slot"
    ? slot
    : weight;
  invariant(buffer, `a routing without capacity has no '${field}'`);
  return {
    buffer,
    dtype: lowering.buffers.get(buffer)!.dtype,
    axes: node.axes,
  };
}
