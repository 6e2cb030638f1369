/** Capacity: token order, slots, and remaining weights. */

import type { Expr } from "../../../../spec/kernel/tree.ts";
import type { Size } from "../../../../spec/size.ts";
import type { NodeOf, RouteOperand } from "../../../graph/graph.ts";
import { slotsOf } from "../../../graph/routing/presets.ts";
import { elementwiseGrid } from "../../../../spec/kernel/elementwise.ts";
import { keep, mark } from "../../../kernels/routing/capacity.ts";
import {
  mergeRuns,
  SORTED_RUN,
  sortRuns,
} from "../../../kernels/routing/order_tokens.ts";
import { slots, slotsGrid } from "../../../kernels/routing/slots.ts";
import { localBound } from "../../../sharding/lengths.ts";
import {
  addConst,
  addLaunch,
  addScratch,
  amendBuffer,
  type Lowering,
  sizeOf,
} from "../context.ts";
import type { RouteResults } from "../lowering.ts";
import { tokenCount } from "../tokens.ts";

/** Choices of a router before dropping. */
interface Chosen {
  readonly index: string;
  readonly weight: string;
  readonly slot: string;
  readonly first?: string;
  readonly operands: { readonly [O in RouteOperand]?: string };
}

/** The token axes of a routing group. */
function groupAxes({ params }: NodeOf<"route">): readonly string[] {
  return params.tokens.filter((axis) => axis !== params.leadingGroup);
}

/** The number of tokens of a contiguous routing group on a rank. */
export function groupLength(lowering: Lowering, node: NodeOf<"route">): Expr {
  return tokenCount(lowering, groupAxes(node));
}

/** The maximum number of tokens of these axes on any rank. */
function bound(lowering: Lowering, axes: readonly string[]): number {
  return axes.reduce(
    (n, axis) => n * Math.max(...localBound(lowering.placed, axis)),
    1,
  );
}

/** Assigns slots and computes the remaining weights. */
export function lowerCapacity(
  lowering: Lowering,
  node: NodeOf<"route">,
  chosen: Chosen,
): RouteResults {
  const { rule, expert, tokens, choice, leadingGroup } = node.params;
  const { index, weight, slot, operands } = chosen;
  const experts = lowering.placed.axes[expert]!.size;
  const common = { experts, rule, tokens: tokenCount(lowering, tokens) };
  const workgroups = elementwiseGrid(sizeOf(lowering, tokens));
  const marked = addScratch(lowering, "mark", "u32", [expert, ...tokens]);
  const { mask } = operands;
  // The mask kernel sets every slot to -1; kept choices then get their slot.
  amendBuffer(lowering, slot, { writers: 2 });
  const marking = mark({
    name: `mark_${experts}`,
    ...common,
    masked: mask !== undefined,
  });
  addLaunch(lowering, node, marking, {
    bindings: { index, slot, mark: marked, ...mask ? { mask } : {} },
    workgroups,
  });
  const order = orderOf(lowering, node, chosen);
  const room = roomOf(lowering, node);
  const groups: Size = leadingGroup === undefined
    ? 1
    : sizeOf(lowering, [leadingGroup]);
  const giving = slots({
    name: `slots_${experts}`,
    ...common,
    group: operands.group ? "tensor" : groupLength(lowering, node),
    ordered: order !== undefined,
    room: typeof room === "object" ? "table" : room,
  });
  addLaunch(lowering, node, giving, {
    bindings: {
      ...operands,
      mark: marked,
      weight,
      slot,
      ...order ? { order } : {},
      ...typeof room === "object" ? { room: room.table } : {},
    },
    workgroups: slotsGrid(experts, groups),
  });
  const kept = addScratch(lowering, "kept", "f32", [...tokens, choice]);
  addLaunch(lowering, node, keep({ name: `keep_${experts}`, ...common }), {
    bindings: { slot, weight, kept },
    workgroups,
  });
  return { index, weight: kept, slot };
}

/** Tokens by group and priority, if that is not their own order: sorted runs, merged pairwise. */
function orderOf(
  lowering: Lowering,
  node: NodeOf<"route">,
  { operands, first }: Chosen,
): string | undefined {
  if (operands.group === undefined && first === undefined) return undefined;
  const { tokens } = node.params;
  const common = {
    tokens: tokenCount(lowering, tokens),
    group: operands.group ? "tensor" as const : groupLength(lowering, node),
    prioritised: first !== undefined,
  };
  const workgroups = elementwiseGrid(sizeOf(lowering, tokens));
  const scratch = () => addScratch(lowering, "order", "u32", tokens);
  const known = {
    ...operands.group ? { group: operands.group } : {},
    ...first ? { first } : {},
  };
  let order = scratch();
  const sorted = sortRuns({ name: "sort_tokens", ...common });
  addLaunch(lowering, node, sorted, {
    bindings: { ...known, order },
    workgroups,
  });
  const max = bound(lowering, tokens);
  for (let run = SORTED_RUN; run < max; run *= 2) {
    const next = scratch();
    const merged = mergeRuns({ name: `merge_tokens_${run}`, ...common, run });
    addLaunch(lowering, node, merged, {
      bindings: { ...known, order, next },
      workgroups,
    });
    order = next;
  }
  return order;
}

/**
 * Slots per expert: a constant, or a table by the number of tokens in a group. It is a table because the formulas
 * reproduce the rounding of other systems, which GPUs do not guarantee.
 */
function roomOf(
  lowering: Lowering,
  node: NodeOf<"route">,
): number | "largest" | { readonly table: string } {
  const { rule, expert, operands } = node.params;
  const capacity = rule.capacity!;
  if (capacity.slots === "largest") return "largest";
  const experts = lowering.placed.axes[expert]!.size;
  const of = (tokens: number) =>
    slotsOf(capacity, { tokens, experts, topK: rule.topK });
  const axes = groupAxes(node);
  const max = bound(lowering, axes);
  const varies = operands.includes("group") ||
    axes.some((axis) => lowering.placed.axes[axis]!.dynamic);
  if (typeof capacity.slots === "number" || !varies) return of(max);
  const { slots, factor, per, minimum, alignment } = capacity;
  const formula = [
    slots,
    factor,
    per,
    minimum,
    alignment,
    rule.topK,
    experts,
    max,
  ];
  const table = addConst(lowering, `slots by ${formula.join(" ")}`, () => ({
    axis: "tokens of a group",
    size: max + 1,
    data: { all: Array.from({ length: max + 1 }, (_, n) => of(n)) },
  }));
  return { table };
}
