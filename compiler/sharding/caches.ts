/**
 * KV caches: a rank allocates only the sequences whose tokens it has. Sequence s of a cache is on rank s mod n of n,
 * and tokens are assigned to the rank of their sequence. The positions of a sequence can be sharded in blocks (context
 * parallelism).
 */

import { PlacementError } from "../../spec/errors.ts";
import { groupSizeOf } from "../../spec/mesh.ts";
import { EXACT } from "../../spec/numerics.ts";
import type { Graph, Node } from "../graph/graph.ts";
import { updatedBy } from "../graph/in_place.ts";
import { usersOf } from "../graph/users.ts";
import { sameOver } from "../graph/sharding.ts";
import { RULES } from "./rules.ts";
import type { PlacedMesh, Request, Requests } from "./placement.ts";

/** The sequence axis of caches, the token axis, and the input with the sequence of each token. */
export interface CachedSequences {
  readonly sequence: string;
  readonly token: string;
  readonly input: string;
  /** Maximum number of tokens of a sequence in a step: the positions of its caches. Undefined: unknown. */
  readonly positions?: number;
}

/** The sequence axes of a graph's caches that can be sharded: only caches use the sequence numbers. */
export function cachedSequences(graph: Graph): CachedSequences[] {
  const users = usersOf(graph);
  const found = new Map<string, CachedSequences>();
  const other = new Set<string>();
  for (const node of graph.nodes) {
    const by = updatedBy(node);
    if (by === undefined) continue;
    const [sequence] = node.inputs[0]!.axes as [string];
    const known = found.get(sequence);
    const [token, second] = by.axes;
    if (
      by.primitive !== "input" || token === undefined || second !== undefined ||
      known && known.input !== by.params.name ||
      !users.get(by)!.every((user) => numbersSequences(user, by))
    ) {
      other.add(sequence);
    } else {
      const positions = positionsOf(graph, node) ?? known?.positions;
      const { name: input } = by.params;
      found.set(sequence, {
        sequence,
        token,
        input,
        ...positions === undefined ? {} : { positions },
      });
    }
  }
  return [...found.values()].filter(({ sequence }) => !other.has(sequence));
}

/** The positions of a cache that every token writes. */
function positionsOf(
  { axes }: Graph,
  { primitive, params, inputs }: Node,
): number | undefined {
  const [, context] = inputs[0]!.axes;
  return primitive === "cacheWrite" && !params.sparse && context !== undefined
    ? axes[context]!.size
    : undefined;
}

function numbersSequences({ primitive, inputs }: Node, by: Node): boolean {
  const { sequence } = RULES[primitive];
  return inputs.every((input, i) => (input === by) === (i === sequence));
}

/** Places caches on the ranks of their sequences' tokens, and tokens on the ranks of placed caches. */
export function shardCaches(
  caches: readonly CachedSequences[],
  placed: Requests,
): Map<string, Request> {
  const requests = new Map(placed);
  for (const { sequence, token } of caches) {
    const { over, table } = requests.get(sequence) ?? requests.get(token) ?? {};
    if (!over?.length) continue;
    requests.set(sequence, {
      over,
      table: requests.has(sequence) && table || "cyclic",
    });
    if (!requests.has(token)) requests.set(token, { over });
  }
  return requests;
}

/** The axes along which a node writes a cache by index, or contracts it. */
function indexedAxes({ primitive, params, inputs, axes }: Node): string[] {
  if (primitive === "cacheWrite") return axes.slice(0, 2);
  if (primitive === "conv1d") return inputs[0]!.axes.slice(0, 2);
  if (primitive === "linearRecurrence") {
    return [inputs[0]!.axes[0]!, params.dim];
  }
  if (primitive === "selectKeys") return [...inputs[2]!.axes];
  if (primitive === "selectBlocks") return [...inputs[1]!.axes];
  if (primitive === "attentionSum") return [params.context];
  if (primitive !== "attention") return [];
  const { token, head, kvHead } = params;
  return inputs.slice(1, 3).flatMap(({ axes }) => axes)
    .filter((axis) => axis !== token && axis !== head && axis !== kvHead);
}

/**
 * Checks that the axes along which caches are indexed or contracted by attention are replicated, except for positions
 * in blocks, and for sequences on the ranks of their tokens. Throws PlacementError.
 */
export function checkCaches(
  { nodes, axes }: Graph,
  sequences: readonly CachedSequences[],
  { mesh, requests }: PlacedMesh,
): void {
  const contexts = new Set(
    nodes.flatMap((node) =>
      node.primitive === "attention" ? [node.params.context] : []
    ),
  );
  for (const node of nodes) {
    for (const axis of indexedAxes(node)) {
      const { over = [] } = requests.get(axis) ?? {};
      if (over.length === 0) continue;
      if (contexts.has(axis)) {
        const why = over.length > 1
          ? "positions can be sharded over one mesh axis. Place them so"
          : wholeContext(node) ??
            unequalBlocks(axes[axis]!.size, groupSizeOf(mesh, over));
        if (why === undefined) continue;
        throw new PlacementError(
          `Cannot shard axis '${axis}' over '${over.join("+")}': ${why}`,
        );
      }
      const known = sequences.find(({ sequence }) => sequence === axis);
      const tokens = requests.get(known?.token ?? "")?.over ?? [];
      if (sameOver(tokens, over)) continue;
      throw new PlacementError(
        `Cannot shard axis '${axis}' over '${over.join("+")}': ${
          known
            ? `tokens are sharded over '${
              tokens.join("+")
            }', and those of a sequence are where its cache is. Place '${known.token}' only: '${axis}' follows it`
            : "caches have all of it on every rank. Leave it out of the placement"
        }`,
      );
    }
  }
}

/** Why a node needs all positions of a sequence on one rank, if it does. */
function wholeContext({ primitive, params }: Node): string | undefined {
  const remedy = "Remove it from the mesh";
  if (primitive === "attentionSum") {
    return `training needs all keys of a sequence on one rank. ${remedy}`;
  }
  const selects = primitive === "selectKeys" || primitive === "selectBlocks" ||
    primitive === "attention" &&
      (params.selected !== undefined || params.entries !== undefined);
  return selects
    ? `the model selects keys among all positions of a sequence. ${remedy}`
    : undefined;
}

/** Why positions cannot be divided into equal numbers of complete blocks of keys, if they cannot. */
function unequalBlocks(size: number, ranks: number): string | undefined {
  const unit = EXACT.block * ranks;
  return size % unit === 0
    ? undefined
    : `its ${size} positions are not divisible into blocks of ${EXACT.block} keys for ${ranks} ranks. Use a multiple of ${unit}, such as ${
      Math.ceil(size / unit) * unit
    } (--max-context)`;
}
