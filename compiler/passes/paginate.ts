/**
 * Paginate: caches of attention in pages, for PagedAttention (Kwon et al., 2023). A page has a fixed number of positions, and
 * a table says for each sequence in which pages it is, so that memory is taken as sequences grow. Holds after it: caches are
 * `page within …`, whatever they were before behind the first two axes; what writes or reads them has the table as its last
 * operand, an input of the program. Bits do not depend on it: keys are summed in the same order.
 */

import { ModelError } from "../../spec/errors.ts";
import { MAX_AXIS } from "../../spec/limits.ts";
import { groupSizeOf } from "../../spec/mesh.ts";
import { BLOCK, PAGE, PAGES_INPUT, WITHIN } from "../../spec/pages.ts";
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
  /** Pages of a rank, which all its sequences share: each has as many as it needs, in every layer the same ones. */
  readonly count: number;
}

/** Put the caches of attention into pages. Throws ModelError. */
export function paginate(
  { graph, placed }: Localized,
  pages: Pages,
): Localized {
  checkPages(pages);
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
      }', and there is one table`,
    );
  }
  const blocks = Math.ceil(placed.axes[context]!.size / pages.size);
  if (pages.count < blocks) {
    return refuse(
      `${pages.count} have ${
        pages.count * pages.size
      } positions, and a sequence up to ${placed.axes[context]!.size}`,
    );
  }
  const { over } = placed.axes[sequence]!;
  const added = pageAxes(
    { ...pages, blocks, over },
    (axes) => groupSizeOf(placed.mesh, axes),
  );
  const taken = Object.keys(added).find((axis) => axis in placed.axes);
  if (taken) return refuse(`the model has an axis '${taken}'`);
  return {
    graph: {
      ...pagedGraph(graph, {
        caches,
        page: localName(PAGE, over),
        table: tableNode(sequence),
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

/** The axes of caches and their table, on a rank and in the model. */
function pageAxes(
  { size, count, blocks, over }: Pages & {
    readonly blocks: number;
    readonly over: readonly string[];
  },
  groupSize: (over: readonly string[]) => number,
): { readonly [name: string]: LocalAxis } {
  const whole = (of: string, size: number): LocalAxis => ({
    ...{ of, over: [], size, total: size, dynamic: false },
  });
  const total = count * groupSize(over);
  return {
    [PAGE]: whole(PAGE, total),
    ...over.length === 0 ? {} : {
      [localName(PAGE, over)]: {
        ...whole(PAGE, total),
        ...{ over, size: count, table: "block" },
      },
    },
    [WITHIN]: whole(WITHIN, size),
    [BLOCK]: whole(BLOCK, blocks),
  };
}

function tableNode(sequence: string): Node {
  return {
    ...{ primitive: "input", inputs: [], params: { name: PAGES_INPUT } },
    ...{ axes: [sequence, BLOCK], dtype: "i32", span: undefined },
  } as NodeOf<"input">;
}

/** The graph with caches in pages. */
function pagedGraph(
  graph: Graph,
  { caches, page, table }: {
    readonly caches: ReadonlySet<Node>;
    readonly page: string;
    readonly table: Node;
  },
): Graph {
  const paged = new Set<Node>(caches);
  const { nodes, ...rest } = mapNodes(graph, (node, before) => {
    const writes = node.primitive === "cacheWrite" &&
      paged.has(before.inputs[0]!);
    if (writes) paged.add(before);
    const reads = writes || node.primitive === "attention";
    return {
      ...node,
      ...reads ? { inputs: [...node.inputs, table] } : {},
      ...paged.has(before)
        ? { axes: [page, WITHIN, ...node.axes.slice(2)] }
        : {},
    } as Node;
  });
  return { nodes: [table, ...nodes], ...rest };
}
