/**
 * Paginate: caches of attention in pages, for PagedAttention (Kwon et al., 2023). A page has a fixed number of positions, and
 * a table says for each sequence in which pages it is, so that memory is taken as sequences grow. Holds after it: caches are
 * `page within …`, whatever they were before behind the first two axes; what writes or reads them has the table as its last
 * operand, an input of the program. Bits do not depend on it: keys are summed in the same order.
 */

import { ModelError } from "../../spec/errors.ts";
import { positionsOver } from "../../spec/mesh.ts";
import type { Graph, Node, NodeOf } from "../graph/graph.ts";
import { localName } from "../graph/sharding.ts";
import type { LocalAxis } from "../sharding/local_axes.ts";
import type { Localized } from "../sharding/localize.ts";

/** The pages of the caches of a rank. */
export interface Pages {
  /** Positions of a page. */
  readonly size: number;
  /** Pages of a rank, which all its sequences share: each has as many as it needs, in every layer the same ones. */
  readonly count: number;
}

/** Axes of caches, and of their table. */
const [PAGE, WITHIN, BLOCK] = ["page", "within", "block"] as const;

/** The input that says in which page of its rank each block of positions of a sequence is: i32 [sequence, block]. */
export const PAGES_INPUT = "pages";

/** Put the caches of attention into pages. Throws ModelError. */
export function paginate(
  { graph, placed }: Localized,
  pages: Pages,
): Localized {
  checkPages(pages);
  const caches = cachesOf(graph);
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
    (axes) => positionsOver(placed.mesh, axes),
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
    if (!Number.isInteger(n) || n < 1) {
      throw new ModelError(
        `Cannot make ${count} pages of ${size} positions: give whole numbers of at least 1`,
      );
    }
  }
}

function refuse(because: string): never {
  throw new ModelError(
    `Cannot put caches into pages: ${because}. Change that, or compile without pages`,
  );
}

/** The states that attention reads keys or values of. */
function cachesOf({ nodes }: Graph): Set<NodeOf<"state">> {
  const found = new Set<NodeOf<"state">>();
  for (const node of nodes) {
    if (
      node.primitive === "attentionSum" || node.primitive === "attentionGrad"
    ) return refuse("the model is trained");
    if (node.primitive !== "attention") continue;
    for (const cache of node.inputs.slice(1, 3)) {
      const state = cache.inputs[0];
      if (cache.primitive !== "cacheWrite" || state?.primitive !== "state") {
        return refuse("attention reads what it has not written");
      }
      found.add(state);
    }
  }
  return found;
}

/** The axes of caches and their table, on a rank and in the model. */
function pageAxes(
  { size, count, blocks, over }: Pages & {
    readonly blocks: number;
    readonly over: readonly string[];
  },
  positions: (over: readonly string[]) => number,
): { readonly [name: string]: LocalAxis } {
  const whole = (of: string, size: number): LocalAxis => ({
    ...{ of, over: [], size, total: size, dynamic: false },
  });
  const total = count * positions(over);
  return {
    [PAGE]: whole(PAGE, total),
    ...over.length === 0 ? {} : {
      [localName(PAGE, over)]: {
        ...{ ...whole(PAGE, total), over, size: count, table: "block" },
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
): Pick<Graph, "nodes" | "outputs" | "states"> {
  const now = new Map<Node, Node>();
  const paged = new Set<Node>(caches);
  for (const node of graph.nodes) {
    const inputs = node.inputs.map((input) => now.get(input)!);
    const writes = node.primitive === "cacheWrite" &&
      paged.has(node.inputs[0]!);
    if (writes) paged.add(node);
    const inPages = paged.has(node);
    const reads = writes || node.primitive === "attention";
    now.set(node, {
      ...node,
      inputs: reads ? [...inputs, table] : inputs,
      ...inPages ? { axes: [page, WITHIN, ...node.axes.slice(2)] } : {},
    } as Node);
  }
  const of = (named: { readonly [name: string]: Node }) =>
    Object.fromEntries(
      Object.entries(named).map(([name, node]) => [name, now.get(node)!]),
    );
  return {
    nodes: [table, ...now.values()],
    outputs: of(graph.outputs),
    states: of(graph.states),
  };
}
