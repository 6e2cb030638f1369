/** Rows of a routing: counts per expert, the row of each choice, and with deduplication, the row of each token. */

import { groupSizeOf } from "../../../../spec/mesh.ts";
import { mapRanks, type PerRank, perRank } from "../../../../spec/per_rank.ts";
import type { PlanBuffer, StepPart } from "../../../../spec/plan/plan.ts";
import type { Size } from "../../../../spec/size.ts";
import type { Node, NodeOf, RoutingNode } from "../../../graph/graph.ts";
import {
  assign,
  type AssignOptions,
  rangesOf,
} from "../../../kernels/routing/assign.ts";
import { assignFew, FEW_CHOICES } from "../../../kernels/routing/assign_few.ts";
import { elementwiseGrid } from "../../../../spec/kernel/elementwise.ts";
import { type Kernel, kernelFrom } from "../../../kernels/kernel.ts";
import { routerByLanes } from "../../../kernels/routing/router_lanes.ts";
import { rowsGrid } from "../../../kernels/rows.ts";
import { listRows } from "../../../kernels/routing/list_rows.ts";
import {
  chunkExperts,
  type ExpertRanges,
  expertTable,
  heldExperts,
  unitSplits,
} from "../../expert_ranges.ts";
import { localBound } from "../../../sharding/lengths.ts";
import {
  about,
  addAllGather,
  addConst,
  addLaunch,
  addScratch,
  amendBuffer,
  type Lowering,
  sizeOf,
} from "../context.ts";
import { routeResults } from "./route.ts";
import { tokenCount } from "../tokens.ts";

/** The rows that a rank sends for a routing, and their buffers. */
export interface SentRows {
  readonly number: number;
  /** Exchanges within a node: the rows that are sent between nodes. */
  readonly within?: SentRows;
  /** The assign node. Its parameters state whose choices have rows, and whether these are local. */
  readonly node: NodeOf<"assign">;
  readonly over: readonly string[];
  readonly splits: readonly number[];
  /** The experts of each chunk. */
  readonly chunks: readonly ExpertRanges[];
  /** Maximum number of rows, and the host's bound at run time. */
  readonly bound: PerRank;
  readonly size: Size;
  readonly sendRow: string;
  /** Rows per expert, followed by tokens per unit if they are deduplicated. */
  readonly counts: string;
  /** Counts of every rank of the group; `counts` itself for one rank. */
  readonly countsAll: string;
  readonly groupRank: string;
  /** Maximum number of rows that a rank receives in a round. Absent: all at once. */
  readonly roundRows?: number;
  /** Set if tokens are sent at most once per rank and chunk, a *unit*. */
  readonly tokens?: SentTokens;
}

/** Deduplicated tokens: each is sent at most once per unit. */
export interface SentTokens {
  readonly bound: PerRank;
  /** The row of a token, at its first choice of each unit. */
  readonly tokenRow: string;
  /** For the row of each choice, the index of its token within its unit. */
  readonly indices: string;
  /** With pre-summing, the rows of each token, and their maximum number. */
  readonly lists?: { readonly rows: string; readonly maxChoices: number };
}

/** The routing of these rows. */
export function routeOf({ node }: SentRows): RoutingNode {
  return node.inputs[0] as RoutingNode;
}

/** The number of counts of a rank for a routing, or for its rounds, whose counts include an offset per group rank. */
export function countsPerRankOf(
  { node, splits, chunks, roundRows, within }: Pick<
    SentRows,
    "node" | "splits" | "chunks" | "roundRows" | "within"
  >,
): number {
  if (roundRows !== undefined) return splits.at(-1)! + splits.length - 1;
  return splits.at(-1)! +
    (node.params.once && !within ? unitSplits(chunks).length - 1 : 0);
}

/** Counts rows per expert and numbers them. */
export function lowerAssign(lowering: Lowering, node: NodeOf<"assign">): void {
  const rows = sentRows(lowering, node);
  lowering.values.sent.set(node, rows);
  if (!node.params.local) launchAssign(lowering, node, rows);
}

/** Launches the kernel of an assignment; for local rows, with the buffers that list them. */
export function launchAssign(
  lowering: Lowering,
  node: Node,
  rows: SentRows,
  grouped?: {
    readonly tileRows: number;
    readonly bindings: { readonly [binding: string]: string };
  },
): void {
  const { splits, tokens, sendRow } = rows;
  const route = routeOf(rows);
  const { expert, localOnly } = rows.node.params;
  const { rule: { topK }, tokens: axes } = route.params;
  const results = routeResults(lowering, route);
  const order = orderBuffer(lowering, expert);
  const part = partOf(rows, "count");
  const options: AssignOptions = {
    name: `assign_${splits.at(-1)!}`,
    experts: splits.at(-1)!,
    k: topK,
    tokens: tokenCount(lowering, axes),
    dropping: results.slot !== undefined,
    ordered: order !== undefined,
    ...localOnly ? { splits } : {},
    ...tokens ? { units: unitSplits(rows.chunks) } : {},
    ...grouped ? { grouped } : {},
  };
  const buffers: { readonly [binding: string]: string } = {
    ...grouped?.bindings,
    index: results.index,
    sendRow,
    ...results.slot ? { slot: results.slot } : {},
    ...order ? { order } : {},
    groupRank: rows.groupRank,
    counts: rows.counts,
    ...tokens
      ? { tokenRow: tokens.tokenRow, tokenIndices: tokens.indices }
      : {},
  };
  const add = (kernel: Kernel, groups: Size) =>
    addLaunch(lowering, node, kernel, {
      bindings: buffers,
      workgroups: [groups, 1, 1],
      part: grouped ? { ...part, lists: true } : part,
    });
  if (lowering.options.tuning.wideRows !== true) {
    return add(kernelFrom(assign, options), 1);
  }
  const few = kernelFrom(assignFew, {
    ...options,
    name: `${options.name}_few`,
  });
  const max = axes.reduce(
    (n, axis) => n * Math.max(...localBound(lowering.placed, axis)),
    topK,
  );
  const routed = launchRouters(lowering, node, rows, {
    options,
    max,
    buffers,
  });
  const above = (limit: number, groups: Size): Size =>
    limit > 0 ? { above: [rows.size, limit, groups] } : groups;
  const launches: (readonly [Kernel, Size])[] = [];
  if (routed < FEW_CHOICES) {
    const upTo: Size = { upTo: [rows.size, FEW_CHOICES, 1] };
    launches.push([few, above(routed, max > FEW_CHOICES ? upTo : 1)]);
  }
  if (max > FEW_CHOICES) {
    const words = Math.floor(lowering.options.maxShared / 4);
    const ranges = grouped ? undefined : rangesOf(options);
    const many = kernelFrom(assign, {
      ...options,
      words,
      ...ranges ? { ranges } : {},
    });
    launches.push([many, above(FEW_CHOICES, ranges ? ranges.length - 1 : 1)]);
  }
  for (const { name, access } of few.bindings) {
    // The router does not write counts of local rows.
    const others = routed > 0 && (!grouped || name !== "counts") ? 1 : 0;
    const writers = launches.length + others;
    if (access !== "read" && writers > 1) {
      amendBuffer(lowering, buffers[name]!, { writers });
    }
  }
  for (const [kernel, groups] of launches) add(kernel, groups);
}

/**
 * Launches a pending router. Up to a number of choices, those of one token if rows may be sent, the router also assigns
 * them. Returns this number; 0 if another kernel assigns them.
 */
function launchRouters(
  lowering: Lowering,
  node: Node,
  rows: SentRows,
  { options: assignment, max, buffers }: {
    readonly options: AssignOptions;
    /** Maximum number of choices. */
    readonly max: number;
    readonly buffers: { readonly [binding: string]: string };
  },
): number {
  const { pending } = routeResults(lowering, routeOf(rows));
  if (!pending) return 0;
  const { options, bindings, count } = pending;
  const isLocal = assignment.grouped !== undefined;
  const limit = isLocal
    ? Math.min(options.experts, FEW_CHOICES)
    : options.rule.topK;
  const assigns = kernelFrom(routerByLanes, {
    ...options,
    name: `${options.name}_assign`,
    ...isLocal ? { assigns: true } : { assignment },
  });
  const alone = isLocal && assignment.ordered || max <= limit ||
    assigns.bindings.length > lowering.options.maxBindings;
  addLaunch(lowering, pending.node, kernelFrom(routerByLanes, options), {
    bindings,
    workgroups: rowsGrid(alone ? count : { above: [rows.size, limit, count] }),
  });
  if (alone) return 0;
  for (const name of ["index", "weight"]) {
    amendBuffer(lowering, bindings[name]!, { writers: 2 });
  }
  addLaunch(lowering, node, assigns, {
    bindings: { ...buffers, ...bindings },
    // Ranks without tokens store counts.
    workgroups: rowsGrid({ upTo: [rows.size, limit, isLocal ? count : 1] }),
    // Without a part, the router of one token may share a launch, as with a matmul of shared experts.
    ...isLocal ? { part: { ...partOf(rows, "count"), lists: true } } : {},
  });
  return limit;
}

/** Exchanges the counts of all ranks of the group. */
export function lowerGatherCounts(
  lowering: Lowering,
  node: NodeOf<"gatherCounts">,
): void {
  const rows = sentBy(lowering, node);
  const { over, counts, countsAll, tokens } = rows;
  addAllGather(lowering, node, {
    over,
    from: counts,
    to: countsAll,
    words: countsPerRankOf(rows),
    part: partOf(rows, "exchange counts"),
  });
  if (!tokens?.lists) return;
  const units = unitSplits(rows.chunks);
  const route = routeOf(rows);
  const { weight } = routeResults(lowering, route);
  const { rule: { topK }, tokens: axes } = route.params;
  const list = listRows({
    name: `list_rows_${units.length - 1}`,
    splits: units,
    k: topK,
    maxChoices: tokens.lists.maxChoices,
    tokens: tokenCount(lowering, axes),
  });
  addLaunch(lowering, node, list, {
    bindings: {
      weight,
      sendRow: rows.sendRow,
      tokenRow: tokens.tokenRow,
      counts: countsAll,
      groupRank: rows.groupRank,
      rows: tokens.lists.rows,
    },
    workgroups: elementwiseGrid(rows.size),
    part: partOf(rows, "list rows"),
  });
}

/** Starts the rounds of an exchange. */
export function lowerRounds(
  lowering: Lowering,
  node: NodeOf<"rounds">,
): void {
  const all = sentBy(lowering, node.inputs[0]!);
  const { rows, maxRows } = node.params;
  const { over, splits, countsAll: counts } = all;
  const groupSize = splits.length - 1;
  const to = amendBuffer(
    lowering,
    addScratch(lowering, "roundCounts", "u32", [
      { axis: "groupRank", size: groupSize },
      { axis: "counts of round", size: splits.at(-1)! + groupSize },
    ]),
    { routing: "counts" },
  );
  lowering.values.rounds.set(node, { ...all, countsAll: to, roundRows: rows });
  const { ranks } = lowering.progress;
  const step = { ranks, over, counts, to, splits, rows, maxRows };
  const why = about(lowering, node, partOf(all, "rounds"));
  lowering.draft.steps.push({ op: "rounds", ...step, ...why });
}

/** The part of a dispatch that a step belongs to. */
export function partOf(
  { number, within }: SentRows,
  part: StepPart["part"],
  op: StepPart["op"] = "dispatch",
): StepPart {
  return {
    op,
    routing: number,
    part,
    ...within ? { within: within.number } : {},
  };
}

function sentRows(
  lowering: Lowering,
  node: NodeOf<"assign">,
): SentRows {
  const { placed } = lowering;
  const { once, localOnly, over, splits } = node.params;
  const route = node.inputs[0] as RoutingNode;
  const { choice, tokens, rule: { topK } } = route.params;
  const { of } = placed.axes[node.params.expert]!;
  const groupSize = groupSizeOf(placed.mesh, over);
  const chunks = chunkExperts(splits, node.params.chunks);
  const localChoices = localOnly
    ? Math.min(topK, Math.max(...heldExperts(splits)))
    : topK;
  const bound = mapRanks(
    tokens.map((axis) => perRank(localBound(placed, axis))),
    (lengths) => lengths.reduce((n, length) => n * length, localChoices),
  );
  const choices = (name: string) =>
    addScratch(lowering, name, "u32", [...tokens, choice]);
  const countsPerRank = countsPerRankOf({ node, splits, chunks });
  const counts = routingScratch(lowering, "counts", {
    size: countsPerRank,
    routing: "counts",
  });
  return {
    number: lowering.values.sent.size,
    node,
    over,
    splits,
    chunks,
    bound,
    size: sizeOf(lowering, [...tokens, choice]),
    counts,
    sendRow: choices("sendRow"),
    countsAll: groupSize === 1 || localOnly ? counts : amendBuffer(
      lowering,
      addScratch(lowering, "countsAll", "u32", [
        { axis: "groupRank", size: groupSize },
        { axis: once ? "counts of routing" : of, size: countsPerRank },
      ]),
      { routing: "counts" },
    ),
    groupRank: groupRankBuffer(lowering, over),
    ...once ? { tokens: sentTokens() } : {},
  };

  function sentTokens(): SentTokens {
    const held = heldExperts(unitSplits(chunks));
    const maxChoices = Math.min(topK, Math.max(...held));
    const tokenBound = mapRanks(
      [bound],
      ([rows]) => rows! / topK * Math.min(topK, held.length),
    );
    return {
      bound: tokenBound,
      ...node.params.sums
        ? {
          lists: {
            rows: listBuffer(lowering, tokenBound, maxChoices),
            maxChoices,
          },
        }
        : {},
      tokenRow: choices("tokenRow"),
      indices: routingScratch(lowering, "tokenIndices", { size: bound }),
    };
  }
}

/** A scratch buffer of a routing, by default with one entry per row. */
export function routingScratch(
  lowering: Lowering,
  name: string,
  { size, routing = "rows" }: {
    readonly size: PerRank;
    readonly routing?: PlanBuffer["routing"];
  },
): string {
  const axes = [{ axis: `${name} of routing`, size }];
  const buffer = addScratch(lowering, name, "u32", axes);
  return amendBuffer(lowering, buffer, { routing });
}

/** For each deduplicated token: rows of its choices, then their weights. */
export function listBuffer(
  lowering: Lowering,
  tokens: PerRank,
  maxChoices: number,
): string {
  return addScratch(lowering, "rowsOfTokens", "u32", [
    { axis: "token for unit", size: tokens, dynamic: true },
    { axis: "row or weight", size: 2 * maxChoices },
  ]);
}

/** The group rank of this rank in its exchange. */
export function groupRankBuffer(
  lowering: Lowering,
  over: readonly string[],
): string {
  return addConst(lowering, `groupRank@${over.join("+") || "one"}`, () => ({
    axis: "groupRank",
    size: 1,
    data: { groupRank: over },
  }));
}

/** The index in the counts of each expert, if the table is not in order. */
function orderBuffer(lowering: Lowering, expert: string): string | undefined {
  const ids = expertTable(lowering.placed, expert).flat();
  if (ids.every((id, i) => id === i)) return undefined;
  return addConst(lowering, `order of ${expert}`, () => ({
    axis: lowering.placed.axes[expert]!.of,
    size: ids.length,
    data: { all: ids.map((_, id) => ids.indexOf(id)) },
  }));
}

/** The sent rows of a node: those of an assignment, of one with gathered counts, or of its rounds. */
export function sentBy(
  { values: { sent, rounds } }: Lowering,
  node: Node,
): SentRows {
  return rounds.get(node) ??
    sent.get(node.primitive === "gatherCounts" ? node.inputs[0]! : node)!;
}
