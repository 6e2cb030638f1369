/**
 * Paginate: stores KV caches in pages (PagedAttention, Kwon et al., 2023). A page has a fixed number of positions. A
 * page table maps the blocks of each sequence to pages, so memory is allocated on demand. Layers with a window have
 * separate pages and a separate table, because a sequence needs few of these. Postcondition: caches have axes `page
 * within …` instead of their first two axes; ops that write or read them have the table, an input of the program, as
 * last operand. Bits do not change: keys are summed in the same order.
 */

import { ModelError } from "../../spec/errors.ts";
import { MAX_AXIS } from "../../spec/limits.ts";
import { groupSizeOf } from "../../spec/mesh.ts";
import {
  BLOCK,
  pagesNames,
  type Seen,
  seenPages,
  WITHIN,
} from "../../spec/pages.ts";
import type { AxisCount, AxisLength } from "../../spec/values.ts";
import type { Graph, Node } from "../graph/graph.ts";
import { mapNodes } from "../graph/map_nodes.ts";
import { localName } from "../graph/sharding.ts";
import type { LocalAxis } from "../sharding/local_axes.ts";
import type { Localized } from "../sharding/localize.ts";
import { fullAxis, pageAxes, tableNode, withAxes } from "./page_axes.ts";
import { snapshotStates } from "./snapshot_states.ts";
import { cachesOf, cachesRead } from "./store_caches.ts";

/** The pages of a rank's caches. */
export interface Pages {
  /** Positions per page. */
  readonly size: AxisCount;
  /**
   * Pages per rank, shared by all its sequences on demand, with the same pages in all layers that see the same
   * positions. For layers with a window, at most as many as all sequences can use.
   */
  readonly count: AxisCount;
  /**
   * Snapshots per rank of the states of recurrences and convolutions, so that prefixes can be shared. Default: one per
   * sequence of a rank, at most 8; none for a single sequence.
   */
  readonly snapshots?: AxisLength;
}

/** The pages for ranks that share sequences: their number, and the positions of a sequence on a rank. */
export type ChoosePages = (groupSize: number, positions: number) => Pages;

/** Stores the KV caches in pages, given or chosen for the ranks that share sequences. Throws ModelError. */
export function paginate(
  localized: Localized,
  given: Pages | ChoosePages,
): Localized {
  const { graph, placed } = localized;
  const caches = cachesOf(graph, refuse);
  const [first] = caches;
  if (!first) return refuse("no attention keeps any");
  const [sequence, context] = first.axes as [string, string];
  const other = [...caches].find(({ axes }) =>
    axes[0] !== sequence || axes[1] !== context
  );
  if (other) {
    return refuse(
      `they have axes '${sequence} ${context}' and '${
        other.axes.slice(0, 2).join(" ")
      }', and a sequence has as many blocks in all`,
    );
  }
  const { over, size: sequences } = placed.axes[sequence]!;
  const { over: shared, size: positions } = placed.axes[context]!;
  const groupSize = groupSizeOf(placed.mesh, over);
  const pages = typeof given === "function"
    ? given(groupSize, positions)
    : given;
  checkPages(pages);
  const blocks = Math.ceil(positions / pages.size);
  if (pages.count < blocks) {
    return refuse(
      `they hold ${
        pages.count * pages.size
      } of the ${positions} positions that a sequence may have${
        shared.length > 0 ? " on a rank" : ""
      }`,
      `Give ${blocks} pages of that size (--pages ${blocks}x${pages.size}), or a shorter context (--max-context ${
        pages.count * pages.size * groupSizeOf(placed.mesh, shared)
      })`,
    );
  }
  if (shared.length > 0 && positions % pages.size !== 0) {
    return refuse(
      `a rank has ${positions} positions of a sequence, which pages of ${pages.size} do not divide`,
      "Give pages of a size that divides them",
    );
  }
  const seen = seenOf(graph, placed.axes[context]!.total);
  const tokens = stepTokens(localized);
  const count = (of: Seen): number => {
    const each = seenPages(of, pages.size);
    if (each === undefined) return pages.count;
    // Two tokens of a sequence may see one page more than one token does, plus one per further page of tokens.
    const ends = Math.min(sequences, Math.floor(tokens / 2));
    const fullPages = Math.max(0, Math.floor((tokens - 2 * ends) / pages.size));
    return Math.min(pages.count, each * sequences + ends + fullPages);
  };
  const ranks = [...over, ...shared];
  const groups = [...new Map(
    [...caches].map((cache) => {
      const of = seen(cache);
      const { axis, input } = pagesNames(of);
      return [input, { axis, input, count: count(of) }] as const;
    }),
  ).values()];
  const added: { readonly [axis: string]: LocalAxis } = Object.assign(
    {},
    ...groups.map(({ axis, count }) =>
      pageAxes({ axis, count, over: ranks }, groupSizeOf(placed.mesh, ranks))
    ),
    { [WITHIN]: fullAxis(WITHIN, pages.size) },
    pageAxes(
      { axis: BLOCK, count: blocks, over: shared },
      groupSizeOf(placed.mesh, shared),
    ),
  );
  const block = localName(BLOCK, shared);
  const taken = Object.keys(added).find((axis) => axis in placed.axes);
  if (taken) {
    return refuse(`the model has an axis '${taken}'`, "Rename the axis");
  }
  const tables = new Map(
    groups.map(({ input }) => [input, tableNode(input, sequence, block)]),
  );
  const paged = pagedGraph(graph, {
    caches,
    tables: [...tables.values()],
    pagesOf: (cache) => {
      const { axis, input } = pagesNames(seen(cache));
      return { page: localName(axis, ranks), table: tables.get(input)! };
    },
  });
  return snapshotStates(
    withAxes({ graph: { ...paged, axes: graph.axes }, placed }, added),
    pages.snapshots,
  );
}

/** The positions that the layers reading a cache see; all positions if the layers differ. */
function seenOf(
  { nodes }: Graph,
  context: number,
): (cache: Node) => Seen {
  const seen = new Map<Node, Seen>();
  for (const node of nodes) {
    const of = node.primitive === "attention"
      ? limitsOf(node.params, context)
      : {};
    for (const { inputs: [cache] } of cachesRead(node)) {
      const before = seen.get(cache!);
      const equal = !before || pagesNames(before).axis === pagesNames(of).axis;
      seen.set(cache!, equal ? of : {});
    }
  }
  return (cache) => seen.get(cache)!;
}

function limitsOf(
  { window = Infinity, chunk = Infinity }: Seen,
  context: number,
): Seen {
  return {
    ...window < context ? { window } : {},
    ...chunk < context ? { chunk } : {},
  };
}

/** Maximum number of tokens per step on a rank. */
function stepTokens({ graph, placed }: Localized): number {
  return Math.max(
    ...graph.nodes.flatMap((node) =>
      node.primitive === "attention"
        ? [placed.axes[node.params.token]!.size]
        : []
    ),
  );
}

function checkPages({ size, count }: Pages): void {
  for (const n of [size, count]) {
    if (!Number.isInteger(n) || n < 1 || n > MAX_AXIS) {
      throw new ModelError(
        `Cannot make ${count} pages of ${size} positions: a number is not whole or not from 1 to ${MAX_AXIS}. Give two that are`,
      );
    }
  }
}

function refuse(because: string, remedy = "Leave out the pages"): never {
  throw new ModelError(`Cannot put caches into pages: ${because}. ${remedy}`);
}

/** The pages of a cache: their local axis and their page table. */
interface CachePages {
  readonly page: string;
  readonly table: Node;
}

/** The graph with paged caches. */
function pagedGraph(
  graph: Graph,
  { caches, tables, pagesOf }: {
    readonly caches: ReadonlySet<Node>;
    readonly tables: readonly Node[];
    readonly pagesOf: (cache: Node) => CachePages;
  },
): Graph {
  const paged = new Map<Node, CachePages>(
    [...caches].map((cache) => [cache, pagesOf(cache)]),
  );
  const { nodes, ...rest } = mapNodes(graph, (node, before) => {
    const [cache] = node.primitive === "cacheWrite"
      ? before.inputs
      : cachesRead(before);
    const pages = cache && paged.get(cache);
    if (pages && node.primitive === "cacheWrite") paged.set(before, pages);
    const cached = paged.get(before);
    return {
      ...node,
      ...pages ? { inputs: [...node.inputs, pages.table] } : {},
      ...cached ? { axes: [cached.page, WITHIN, ...node.axes.slice(2)] } : {},
    } as Node;
  });
  return { nodes: [...tables, ...nodes], ...rest };
}
