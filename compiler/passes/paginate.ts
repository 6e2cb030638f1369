/**
 * Paginate: caches of attention in pages, for PagedAttention (Kwon et al., 2023). A page has a fixed number of positions, and
 * a table says for each sequence in which pages it is, so that memory is taken as sequences grow. Layers that see the last
 * positions only have pages and a table of their own, as no sequence needs many of these. Holds after it: caches are
 * `page within …`, whatever they were before behind the first two axes; what writes or reads them has the table as its last
 * operand, an input of the program. Bits do not depend on it: keys are summed in the same order.
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
import type { Graph, Node, NodeOf } from "../graph/graph.ts";
import { mapNodes } from "../graph/map_nodes.ts";
import { localName } from "../graph/sharding.ts";
import type { LocalAxis } from "../sharding/local_axes.ts";
import type { Localized } from "../sharding/localize.ts";
import { cachesOf } from "./store_caches.ts";

/** The pages of the caches of a rank. */
export interface Pages {
  /** Positions of a page. */
  readonly size: number;
  /**
   * Pages of a rank, which all its sequences share: each has as many as it needs, the same ones in all layers that see the
   * same positions. Where these are the last ones, there are no more than all sequences together can have.
   */
  readonly count: number;
}

/** Put the caches of attention into pages, as given or chosen for the ranks that share sequences. Throws ModelError. */
export function paginate(
  localized: Localized,
  given: Pages | ((groupSize: number) => Pages),
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
  const groupSize = groupSizeOf(placed.mesh, over);
  const pages = typeof given === "function" ? given(groupSize) : given;
  checkPages(pages);
  const blocks = Math.ceil(placed.axes[context]!.size / pages.size);
  if (pages.count < blocks) {
    return refuse(
      `${pages.count} have ${
        pages.count * pages.size
      } positions, and a sequence up to ${placed.axes[context]!.size}`,
    );
  }
  const seen = seenOf(graph, placed.axes[context]!.size);
  const count = (of: Seen): number => {
    const each = seenPages(of, pages.size);
    if (each === undefined) return pages.count;
    // Two tokens of a sequence may see one page more than one does, and as many more as a page has another.
    const tokens = stepTokens(localized);
    const ends = Math.min(sequences, Math.floor(tokens / 2));
    const whole = Math.max(0, Math.floor((tokens - 2 * ends) / pages.size));
    return Math.min(pages.count, each * sequences + ends + whole);
  };
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
      pageAxes({ axis, count, over }, groupSize)
    ),
    {
      [WITHIN]: wholeAxis(WITHIN, pages.size),
      [BLOCK]: wholeAxis(BLOCK, blocks),
    },
  );
  const taken = Object.keys(added).find((axis) => axis in placed.axes);
  if (taken) return refuse(`the model has an axis '${taken}'`);
  const tables = new Map(
    groups.map(({ input }) => [input, tableNode(input, sequence)]),
  );
  return {
    graph: {
      ...pagedGraph(graph, {
        caches,
        tables: [...tables.values()],
        pagesOf: (cache) => {
          const { axis, input } = pagesNames(seen(cache));
          return { page: localName(axis, over), table: tables.get(input)! };
        },
      }),
      axes: {
        ...graph.axes,
        ...Object.fromEntries(
          Object.entries(added).map(([name, { size, dynamic }]) =>
            [name, { size, dynamic }] as const
          ),
        ),
      },
    },
    placed: { ...placed, axes: { ...placed.axes, ...added } },
  };
}

/** Which positions the layers see that read a cache; all, where that are not the same ones for all. */
function seenOf(
  { nodes }: Graph,
  context: number,
): (cache: Node) => Seen {
  const seen = new Map<Node, Seen>();
  for (const node of nodes) {
    if (node.primitive !== "attention") continue;
    const { window = context, chunk = context } = node.params;
    const of: Seen = {
      ...window < context ? { window } : {},
      ...chunk < context ? { chunk } : {},
    };
    for (const { inputs: [cache] } of node.inputs.slice(1, 3)) {
      const before = seen.get(cache!);
      const equal = !before || pagesNames(before).axis === pagesNames(of).axis;
      seen.set(cache!, equal ? of : {});
    }
  }
  return (cache) => seen.get(cache)!;
}

/** Tokens of a step on a rank, at most. */
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
        `Cannot make ${count} pages of ${size} positions: give whole numbers from 1 to ${MAX_AXIS}`,
      );
    }
  }
}

function refuse(because: string): never {
  throw new ModelError(
    `Cannot put caches into pages: ${because}. Change that, or compile without pages`,
  );
}

/** The axis of pages, on a rank and in the model. */
function pageAxes(
  { axis, count, over }: {
    readonly axis: string;
    readonly count: number;
    readonly over: readonly string[];
  },
  groupSize: number,
): { readonly [name: string]: LocalAxis } {
  const total = count * groupSize;
  const whole = wholeAxis(axis, total);
  return {
    [axis]: whole,
    ...over.length === 0 ? {} : {
      [localName(axis, over)]: {
        ...whole,
        over,
        size: count,
        table: "block",
      },
    },
  };
}

function wholeAxis(of: string, size: number): LocalAxis {
  return { of, over: [], size, total: size, dynamic: false };
}

function tableNode(name: string, sequence: string): Node {
  return {
    primitive: "input",
    inputs: [],
    params: { name },
    axes: [sequence, BLOCK],
    dtype: "i32",
    span: undefined,
  } as NodeOf<"input">;
}

/** The pages of a cache: their axis on a rank, and the table that says where they are. */
interface CachePages {
  readonly page: string;
  readonly table: Node;
}

/** The graph with caches in pages. */
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
    const cache = before.inputs[node.primitive === "attention" ? 1 : 0];
    const pages = (node.primitive === "attention" ||
      node.primitive === "cacheWrite") && paged.get(cache!);
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
