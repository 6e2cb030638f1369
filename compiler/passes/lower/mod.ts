/**
 * Lower: every stored node becomes launches and collectives over buffers. Postcondition: the steps, in order, compute
 * every output; buffers have sizes but no memory. Kernels are from `kernels/`, fused with their neighbours here.
 */

import { invariant } from "../../../spec/errors.ts";
import { storedDType } from "../../../spec/dtype.ts";
import type { Port } from "../../../spec/plan/plan.ts";
import type { Graph, Node, NodeOf, Primitive } from "../../graph/graph.ts";
import { tableOf, updatedBy } from "../../graph/in_place.ts";
import { routeOperand } from "../../graph/routing/presets.ts";
import { usersOf } from "../../graph/users.ts";
import { planAxis } from "../../sharding/lengths.ts";
import { blocksOf } from "./blocks.ts";
import {
  lowerAssign,
  lowerGatherCounts,
  lowerRounds,
} from "./routing/assign.ts";
import { CHECK_AXIS, lowerCheckIds } from "./routing/check.ts";
import { lowerChoices } from "./routing/choices.ts";
import { assignBuckets, lowerBucket } from "./collectives/bucket.ts";
import {
  lowerAttention,
  lowerAttentionGrad,
  lowerAttentionSum,
} from "./attention.ts";
import {
  lowerCombineTranspose,
  lowerReduceSum,
  lowerScatterAdd,
} from "./backward.ts";
import {
  lowerConv1d,
  lowerLinearRecurrence,
  lowerLinearScan,
  lowerNextState,
  lowerShift,
} from "./sequences.ts";
import {
  addBuffer,
  freshName,
  LENGTHS,
  type Lowering,
  ranksOf,
} from "./context.ts";
import { lowerContract } from "./matmul/contract.ts";
import { lowerMatmul } from "./matmul/dot.ts";
import { isMatmul } from "./matmul/is_matmul.ts";
import { reorderedRight } from "./matmul/operands.ts";
import {
  lowerCacheWrite,
  lowerElementwise,
  lowerOutputCopy,
} from "./elementwise.ts";
import { ropeKey } from "./emit.ts";
import { lowerAllGather } from "./collectives/gather.ts";
import { lowerGatherKeys, lowerKeyTable } from "./collectives/gather_keys.ts";
import { lowerMoveRows, lowerNodeCounts } from "./routing/forward_rows.ts";
import { lowerGroup } from "./routing/group.ts";
import { lowerLocalCombine } from "./routing/local_combine.ts";
import { lowerCombine, lowerPermute } from "./routing/permute.ts";
import { lowerAllToAll, lowerReceived } from "./routing/exchange.ts";
import { addParam } from "./params/params.ts";
import {
  lowerAllReduce,
  lowerReduceScatter,
} from "./collectives/reduce_ranks.ts";
import { lowerRound } from "./collectives/round.ts";
import { lowerSelectBlocks } from "./select_blocks.ts";
import { lowerSelectKeys } from "./select_keys.ts";
import { lowerRoute, lowerTopK } from "./routing/route.ts";
import { lowerSend } from "./collectives/send.ts";
import { lowerShortChain } from "./short_chain.ts";
import { lowerReduce, lowerRmsNorm, lowerSoftmax } from "./rows.ts";
import { startUpdates } from "./updates.ts";
import { isPlain } from "./storage.ts";
import { lowerView } from "./view.ts";

type Rule<P extends Primitive> = (lowering: Lowering, node: NodeOf<P>) => void;

/** Rules for stored nodes by primitive. Elementwise primitives share one. */
const RULES: { readonly [P in Primitive]: Rule<P> } = {
  input: (lowering, node) => addSource(lowering, node, "input"),
  state: (lowering, node) => addSource(lowering, node, "state"),
  param: addParam,
  map: lowerElementwise,
  cast: lowerElementwise,
  rope: lowerElementwise,
  embedding: lowerElementwise,
  slice: lowerElementwise,
  concat: lowerElementwise,
  dilate: lowerElementwise,
  transpose: lowerElementwise,
  rename: lowerView,
  split: lowerView,
  merge: lowerView,
  dot: lowerDot,
  reduce: lowerReduce,
  reduceSum: lowerReduceSum,
  softmax: lowerSoftmax,
  logSumExp: lowerReduce,
  rmsNorm: lowerRmsNorm,
  round: lowerRound,
  conv1d: lowerConv1d,
  linearRecurrence: lowerLinearRecurrence,
  linearScan: lowerLinearScan,
  nextState: lowerNextState,
  selectKeys: lowerSelectKeys,
  selectBlocks: lowerSelectBlocks,
  shift: lowerShift,
  topK: lowerTopK,
  route: lowerRoute,
  choices: lowerChoices,
  tupleElement: lowerView,
  dispatch: (_, { primitive }) =>
    invariant(false, `'${primitive}' is expanded before`),
  assign: lowerAssign,
  gatherCounts: lowerGatherCounts,
  rounds: lowerRounds,
  nodeCounts: lowerNodeCounts,
  moveRows: lowerMoveRows,
  group: lowerGroup,
  checkIds: lowerCheckIds,
  keyTable: lowerKeyTable,
  gatherKeys: lowerGatherKeys,
  permute: lowerPermute,
  allToAll: lowerAllToAll,
  received: lowerReceived,
  localCombine: lowerLocalCombine,
  combine: (lowering, node) => lowerCombine(lowering, node, node),
  allSlice: lowerElementwise,
  optimizationBarrier: lowerView,
  allReduce: lowerAllReduce,
  reduceScatter: lowerReduceScatter,
  allGather: lowerAllGather,
  send: lowerSend,
  cacheWrite: lowerCacheWrite,
  attention: lowerAttention,
  attentionSum: lowerAttentionSum,
  attentionGrad: lowerAttentionGrad,
  scatterAdd: lowerScatterAdd,
  combineTranspose: lowerCombineTranspose,
};

/** Lowers the graph into `lowering`. Returns the ports of the program. */
export function lowerGraph(
  lowering: Lowering,
): { inputs: { [name: string]: Port }; outputs: { [name: string]: Port } } {
  addBuffer(lowering, {
    name: LENGTHS,
    kind: "counts",
    dtype: "u32",
    axes: [{
      axis: "dynamic axes",
      size: Math.max(1, lowering.placed.counts.length),
    }],
  });
  assignBuckets(lowering);
  const inputs: { [name: string]: Port } = {};
  const updates = startUpdates(lowering);
  const blocks = blocksOf(lowering.model.graph);
  const stages = stageOfNodes(lowering.model.graph);
  for (const node of lowering.model.graph.nodes) {
    // Nodes that the forward pass does not need are placed later and have the phase of their user.
    if (node.phase) lowering.progress.phase = node.phase;
    lowering.progress.block = node.phase ? undefined : blocks.get(node);
    const stage = node.primitive === "send"
      ? node.params.stages[0]
      : stages.get(node);
    lowering.progress.ranks = ranksOf(
      lowering.placed,
      stage === undefined ? undefined : [stage],
    );
    const bucket = lowering.model.buckets.get(node);
    if (bucket) {
      // The bucket is exchanged after its last member is computed.
      if (node !== bucket.members.at(-1)) continue;
      lowerBucket(lowering, bucket);
      for (const member of bucket.members) updates.after(member);
      continue;
    }
    lowerNode(lowering, node);
    updates.after(node);
    if (node.primitive === "input") {
      inputs[node.params.name] = inputPort(lowering, node);
    }
  }
  const outputs: { [name: string]: Port } = {};
  const taken = new Set<string>();
  for (const [name, node] of Object.entries(lowering.model.graph.outputs)) {
    const buffer = outputBuffer(lowering, name, node, taken);
    taken.add(buffer);
    outputs[name] = portOf(lowering, node, buffer);
  }
  for (const { name, buffer } of lowering.draft.checks) {
    outputs[name] = { buffer, dtype: "u32", axes: [CHECK_AXIS] };
  }
  return { inputs, outputs };
}

/** The stage that has the value of each node. */
export function stageOfNodes({ nodes }: Graph): Map<Node, number | undefined> {
  const stages = new Map<Node, number | undefined>();
  for (const node of nodes) {
    const { sharding, inputs } = node;
    const stage = sharding
      ? sharding.stage
      // Parts of a dispatch are on the stage of their operands.
      : inputs.map((input) => stages.get(input)).find((s) => s !== undefined);
    stages.set(node, stage);
  }
  return stages;
}

function lowerNode(lowering: Lowering, node: Node): void {
  const { stored, absorbs, chains, absorbed } = lowering.model.fusion;
  if (node.primitive === "rope") addRopeTable(lowering, node);
  if (absorbed.has(node)) return;
  const chain = chains.get(node);
  if (chain) return lowerShortChain(lowering, node, chain);
  const roots = absorbs.get(node);
  if (roots?.[0]?.primitive === "combine") {
    return lowerCombine(lowering, node, roots[0]);
  }
  if (roots?.[0]?.primitive === "rmsNorm") {
    return lowerRmsNorm(lowering, roots[0], node);
  }
  if (node.primitive === "concat" && roots) {
    return lowerContract(lowering, roots[0] as NodeOf<"dot">, node);
  }
  if (roots) return lowerMatmul(lowering, node, roots as NodeOf<"dot">[]);
  const inline = RULES[node.primitive] === lowerElementwise as Rule<Primitive>;
  if (inline && !stored.has(node)) return;
  (RULES[node.primitive] as Rule<Primitive>)(lowering, node);
}

/** Adds the buffer of an input or a state. */
export function addSource(
  lowering: Lowering,
  node: NodeOf<"input"> | NodeOf<"state">,
  kind: "input" | "state",
): void {
  const { name } = node.params;
  const dtype = (node.primitive === "state" ? node.params.stored : undefined) ??
    storedDType(node.dtype);
  const axes = lowering.model.cacheAxes.get(node) ?? node.axes;
  addBuffer(lowering, { name, kind, dtype, axes });
  lowering.values.storages.set(node, { buffer: name, dtype, axes });
}

function lowerDot(lowering: Lowering, node: NodeOf<"dot">): void {
  if (isMatmul(node, lowering.model.layouts, lowering.model.dispatched)) {
    return lowerMatmul(lowering, node, [node]);
  }
  const reordered = reorderedRight(lowering, node);
  if (reordered) lowerMatmul(lowering, node, [node], reordered);
  else lowerContract(lowering, node);
}

/** cos and sin by position, computed on load. */
function addRopeTable(lowering: Lowering, node: NodeOf<"rope">): void {
  const key = ropeKey(node);
  if (lowering.values.ropeTables.has(key)) return;
  const { inverseFrequencies, scale, positions } = node.params;
  const name = addBuffer(lowering, {
    name: freshName(lowering, "rope"),
    kind: "rope",
    dtype: "f32",
    axes: [{ axis: "position", size: positions }, {
      axis: "cos and sin",
      size: inverseFrequencies.length * 2,
    }],
    rope: { inverseFrequencies, scale },
  });
  lowering.values.ropeTables.set(key, name);
}

/**
 * The buffer of an output: its own, or a copy if the value is stored elsewhere, in another layout, or is another
 * output.
 */
function outputBuffer(
  lowering: Lowering,
  name: string,
  node: Node,
  taken: ReadonlySet<string>,
): string {
  const storage = lowering.values.storages.get(node);
  invariant(storage, `output '${name}' is not stored`);
  const draft = lowering.draft.buffers.get(storage.buffer)!;
  const plain = !taken.has(storage.buffer) && isPlain(storage) &&
    draft.axes.map(({ axis }) => axis).join() ===
      planAxes(lowering, node).join();
  if (plain && draft.kind === "output") return storage.buffer;
  if (plain && draft.kind === "scratch") {
    lowering.draft.buffers.set(storage.buffer, { ...draft, kind: "output" });
    return storage.buffer;
  }
  return lowerOutputCopy(lowering, name, node);
}

function planAxes({ placed }: Lowering, node: Node): string[] {
  return node.axes.map((axis) => planAxis(placed, axis));
}

function portOf(lowering: Lowering, node: Node, buffer: string): Port {
  return {
    buffer,
    dtype: node.dtype === "f16" ? "f32" : node.dtype,
    axes: planAxes(lowering, node),
  };
}

/** An input. If it is an index, also the bound of its values. */
function inputPort(lowering: Lowering, node: NodeOf<"input">): Port {
  const port = portOf(lowering, node, node.params.name);
  const users = usersOf(lowering.model.graph).get(node) ?? [];
  const below = users.flatMap((user) => indexBound(lowering, user, node));
  const indexes = users.map((user) => indexedAxis(lowering, user, node))
    .find((axis) => axis !== undefined);
  return {
    ...port,
    ...below.length ? { below: Math.min(...below) } : {},
    ...indexes === undefined ? {} : { indexes },
  };
}

/** The axis that `user` indexes by `index`, if ranks use local numbers of its items. */
function indexedAxis(
  { placed }: Lowering,
  user: Node,
  index: Node,
): string | undefined {
  const [first, second] = user.inputs;
  if (updatedBy(user) === index) {
    const [sequence] = (tableOf(user) ?? first!).axes as [string];
    return placed.axes[sequence]!.over.length > 0 ? sequence : undefined;
  }
  if (user.primitive !== "embedding" || second !== index) return;
  const { over } = user.params;
  return placed.axes[over]!.dynamic ? planAxis(placed, over) : undefined;
}

/** The length of the axis that `user` indexes by `index`. */
function indexBound(lowering: Lowering, user: Node, index: Node): number[] {
  const size = (axis: string | undefined) =>
    lowering.placed.axes[axis ?? ""]!.total;
  const [first, second, , fourth] = user.inputs;
  switch (user.primitive) {
    case "embedding":
    case "scatterAdd":
      return second === index ? [size(user.params.over)] : [];
    case "rope":
      return second === index ? [user.params.positions] : [];
    case "cacheWrite":
    case "conv1d":
    case "linearRecurrence": {
      const table = tableOf(user);
      if (table === index) return [lowering.placed.axes[first!.axes[0]!]!.size];
      if (updatedBy(user) === index) return [size((table ?? first!).axes[0])];
      return user.primitive === "cacheWrite" && fourth === index && !table
        ? [size(first!.axes[1])]
        : [];
    }
    case "attention":
      // The axes of paged caches do not contain the maximum sequence length.
      return user.inputs[4] === index ? [size(user.params.context)] : [];
    case "choices":
      return first === index ? [size(user.params.expert)] : [];
    case "route":
      return routeOperand(user, "choices") === index
        ? [size(user.params.expert)]
        : [];
    case "allGather":
      return first === index
        ? (usersOf(lowering.model.graph).get(user) ?? []).flatMap((next) =>
          indexBound(lowering, next, user)
        )
        : [];
    default:
      return [];
  }
}
