/**
 * Add gathered form: where ranks share the positions of sequences, attention gets a second form that reads gathered
 * keys. The runtime selects it in a step if earlier keys are fewer bytes than the running sums of tokens.
 * Postcondition: attention over a sharded context has gathered keys, gathered values and their table as last operands.
 * Bits do not change: keys are summed in the same blocks and order.
 */

import { STORED_BYTES } from "../../spec/dtype.ts";
import { PlacementError } from "../../spec/errors.ts";
import { groupSizeOf } from "../../spec/mesh.ts";
import { EXACT } from "../../spec/numerics.ts";
import type { KeysAxis } from "../../spec/plan/plan.ts";
import type { Node, NodeOf } from "../graph/graph.ts";
import { mapNodes } from "../graph/map_nodes.ts";
import { localName } from "../graph/sharding.ts";
import { localBound } from "../sharding/lengths.ts";
import type { LocalAxis } from "../sharding/local_axes.ts";
import type { Localized } from "../sharding/localize.ts";
import type { Placed } from "../sharding/placed.ts";
import { fullAxis, withAxes } from "./page_axes.ts";

/** The axes of a key within a block of gathered memory, and of the blocks of a sequence. */
const [KEY, BLOCK] = ["key of block", "block of keys"] as const;

/** Facts common to layers with the same table. */
type Common = Omit<KeysAxis, "by" | "part">;

/** A table of layers, the axis of gathered blocks, and the caches gathered with the table. */
interface Table {
  readonly node: NodeOf<"keyTable">;
  readonly gathered: string;
  readonly caches: Map<Node, Node>;
}

/** Adds the second form to all attention over a sharded context. */
export function addGatheredForm(localized: Localized): Localized {
  const { graph, placed } = localized;
  const tables = new Map<string, Table>();
  let added: { readonly [axis: string]: LocalAxis } = {};
  const tableOf = (common: Common): Table => {
    const key = JSON.stringify(common);
    const known = tables.get(key);
    if (known) return known;
    const made = axesOf(placed, common, tables.size);
    added = { ...added, ...made.axes };
    tables.set(key, made.table);
    return made.table;
  };
  /** Nodes before an attention. */
  const before = new Map<Node, readonly Node[]>();
  const { nodes, ...rest } = mapNodes(graph, (node) => {
    if (node.primitive !== "attention") return node;
    const common = commonOf(placed, node);
    if (!common) return node;
    const table = tableOf(common);
    const made: Node[] = [];
    const [keys, values] = node.inputs.slice(1, 3).map((cache) => {
      const known = table.caches.get(cache);
      if (known) return known;
      const nodes = gatheredCache(cache as NodeOf<"cacheWrite">, table);
      made.push(...nodes);
      table.caches.set(cache, nodes[1]);
      return nodes[1];
    }) as [Node, Node];
    const inputs = [...node.inputs, keys, values, table.node];
    const attends: Node = { ...node, inputs };
    before.set(attends, made);
    return attends;
  });
  if (tables.size === 0) return localized;
  const all = [
    ...[...tables.values()].map(({ node }) => node),
    ...nodes.flatMap((node) => [...before.get(node) ?? [], node]),
  ];
  const result = withAxes({ graph: { ...rest, nodes: all }, placed }, added);
  const counts = Object.keys(added).filter((axis) => added[axis]!.dynamic);
  return {
    graph: result.graph,
    placed: { ...result.placed, counts: [...placed.counts, ...counts] },
  };
}

/** Facts that determine the table of an attention. Undefined if its ranks do not share positions. */
function commonOf(
  { axes }: Placed,
  { inputs, params }: NodeOf<"attention">,
): Common | undefined {
  const [, keys, , input, position] = inputs as [Node, Node, Node, Node, Node];
  const { token, head, dim, valueDim, kvHead, context, shared } = params;
  if (axes[context]!.over.length === 0) return undefined;
  const fail = (because: string) =>
    new PlacementError(
      `Cannot shard axis '${axes[context]!.of}': ${because}`,
    );
  if (input.primitive !== "input" || position.primitive !== "input") {
    throw fail(
      "the sequence or the position of tokens is computed. Make both inputs of the model",
    );
  }
  for (const { inputs: [, , writtenFor, writtenAt] } of inputs.slice(1, 3)) {
    if (writtenFor === input && writtenAt === position) continue;
    throw fail(
      "attention has other sequences or positions than the writes of its cache. Use the same inputs for both",
    );
  }
  const size = (axis: string) => axes[axis]!.size;
  const { stored = "f32" } = (keys.inputs[0] as NodeOf<"state">).params;
  const heads = kvHead === undefined ? 1 : size(kvHead);
  const each = heads * (size(dim) + (shared ? 0 : size(valueDim)));
  const { window, chunk } = params;
  const total = axes[context]!.total;
  return {
    of: token,
    input: input.params.name,
    position: position.params.name,
    sequence: (keys.inputs[4] ?? keys).axes[0]!,
    context,
    ...window !== undefined && window < total ? { window } : {},
    ...chunk !== undefined && chunk < total ? { chunk } : {},
    blockBytes: EXACT.block * each * STORED_BYTES[stored],
    // The last rank sends the sums of all keys to the others, and each one its own to the next: twice per other rank.
    tokenBytes: 2 * 4 * size(head) * (size(valueDim) + 2),
  };
}

/** The earlier blocks of a cache on all ranks, and the same with the keys of this step. */
function gatheredCache(
  cache: NodeOf<"cacheWrite">,
  { node: table, gathered }: Table,
): readonly [NodeOf<"gatherKeys">, NodeOf<"cacheWrite">] {
  const [, value, sequence, position, pages] = cache
    .inputs as [Node, Node, Node, Node, Node?];
  const axes = [gathered, KEY, ...cache.axes.slice(2)];
  const blocks: NodeOf<"gatherKeys"> = {
    ...cache,
    primitive: "gatherKeys",
    inputs: [cache, table, ...pages ? [pages] : []],
    params: {},
    axes,
  };
  const inputs = [blocks, value, sequence, position, table];
  return [blocks, { ...cache, inputs, axes }];
}

/** The axes of a table, and the table. */
function axesOf(
  placed: Placed,
  common: Common,
  number: number,
): {
  readonly axes: { readonly [axis: string]: LocalAxis };
  readonly table: Table;
} {
  const { mesh } = placed;
  const { of, sequence, context, blockBytes, tokenBytes } = common;
  const { over: tokens } = placed.axes[of]!;
  const { over: shared, total } = placed.axes[context]!;
  const suffix = number === 0 ? "" : `.${number + 1}`;
  const bound = (axis: string) => Math.max(...localBound(placed, axis));
  const [most, sequences] = [bound(of), bound(sequence)];
  const blocks = total / EXACT.block;
  // More earlier blocks are never gathered.
  const past = Math.max(
    1,
    Math.min(
      sequences * blocks,
      Math.ceil(most * tokenBytes / blockBytes) - 1,
    ),
  );
  const groups = groupSizeOf(mesh, tokens);
  const all: { [axis: string]: LocalAxis } = {};
  const add = (
    part: KeysAxis["part"],
    over: readonly string[],
    size: number,
  ) => {
    const model = `${part}${suffix}`;
    const free = { of: model, size, total: size, dynamic: true };
    const local = localName(model, over);
    if (over.length > 0) all[model] = { ...free, over: [] };
    all[local] = { ...free, over, assignment: { by: "keys", part, ...common } };
    return local;
  };
  const tokensTotal = placed.axes[of]!.total;
  const names = {
    past: add("past", [...tokens, ...shared], past * groups),
    gathered: add("gathered", tokens, tokensTotal),
    relayed: add("relayed", tokens, tokensTotal),
  };
  const gathered = `gathered block${suffix}`;
  // A sequence has at most one block more than its tokens fill.
  const added = Math.floor(most / EXACT.block) + Math.min(most, sequences);
  // Gathers have room for the blocks of all groups.
  all[gathered] = fullAxis(gathered, past * groups + added);
  all[KEY] = fullAxis(KEY, EXACT.block);
  all[BLOCK] = fullAxis(BLOCK, blocks);
  const node: NodeOf<"keyTable"> = {
    primitive: "keyTable",
    inputs: [],
    params: { ...names, over: shared },
    axes: [sequence, BLOCK],
    dtype: "i32",
    span: undefined,
  };
  return { axes: all, table: { node, gathered, caches: new Map() } };
}
