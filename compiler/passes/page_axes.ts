/** Axes of items that a rank assigns to its sequences, such as pages, and the inputs with their tables. */

import type { Node, NodeOf } from "../graph/graph.ts";
import { localName } from "../graph/sharding.ts";
import type { LocalAxis } from "../sharding/local_axes.ts";
import type { Localized } from "../sharding/localize.ts";

/** An axis with a number of items per rank, such as pages, on a rank and in the model. */
export function pageAxes(
  { axis, count, over }: {
    readonly axis: string;
    readonly count: number;
    readonly over: readonly string[];
  },
  groupSize: number,
): { readonly [name: string]: LocalAxis } {
  const total = count * groupSize;
  const full = fullAxis(axis, total);
  return {
    [axis]: full,
    ...over.length === 0 ? {} : {
      [localName(axis, over)]: {
        ...full,
        over,
        size: count,
        table: "block",
      },
    },
  };
}

/** A graph and its placement with more axes. */
export function withAxes(
  { graph, placed }: Localized,
  added: { readonly [name: string]: LocalAxis },
): Localized {
  const sizes = Object.entries(added).map(
    ([name, { size, dynamic }]) => [name, { size, dynamic }] as const,
  );
  return {
    graph: {
      ...graph,
      axes: { ...graph.axes, ...Object.fromEntries(sizes) },
    },
    placed: { ...placed, axes: { ...placed.axes, ...added } },
  };
}

/** A replicated axis. */
export function fullAxis(of: string, size: number): LocalAxis {
  return { of, over: [], size, total: size, dynamic: false };
}

/** The input with a table: i32 [sequence, axis]. */
export function tableNode(
  name: string,
  sequence: string,
  axis: string,
): Node {
  return {
    primitive: "input",
    inputs: [],
    params: { name },
    axes: [sequence, axis],
    dtype: "i32",
    span: undefined,
  } as NodeOf<"input">;
}
