/**
 * Partial: sums over what ranks hold parts of. A sum over placed rows that only differentiation makes is computed where
 * the rows are, and gives each rank a part of it; what is linear keeps parts apart, and all else gets the whole. Holds
 * after it: every value that is a part is marked with the mesh axes over which the parts add up, and no output, state or
 * parameter takes one.
 */

import { positionsOver } from "../../spec/mesh.ts";
import { type Graph, isRouting, type Node } from "../graph/graph.ts";
import { isSpread } from "./gather.ts";
import { PARTIAL } from "./partial_rules.ts";
import type { Placed } from "./placed.ts";
import { type ByExpert, dispatchedNodes } from "./lower/params.ts";
import { type Sharded, shardedNodes } from "./sharded.ts";

/** Node -> the mesh axes over whose ranks it is a sum. */
export type Partial = ReadonlyMap<Node, readonly string[]>;

/** A graph, and which of its values are parts of sums. */
export interface Summed {
  readonly graph: Graph;
  readonly partial: Partial;
  readonly sharded: Sharded;
}

/** Mark sums over placed rows as partial, and add them up where they are needed whole: once for each value. */
export function sumPartials(graph: Graph, placed: Placed): Summed {
  const dispatched = dispatchedNodes(graph);
  const sharded = shardedNodes(graph, placed, dispatched);
  const sums = new Sums(placed, { dispatched, sharded });
  for (const node of graph.nodes) sums.convert(node);
  const read = (named: { readonly [name: string]: Node }) =>
    Object.fromEntries(
      Object.entries(named).map(([name, node]) => [name, sums.whole(node)]),
    );
  const [outputs, states] = [read(graph.outputs), read(graph.states)];
  return {
    graph: { axes: graph.axes, nodes: sums.nodes, outputs, states },
    partial: sums.partial,
    sharded: sums.sharded,
  };
}

class Sums {
  readonly nodes: Node[] = [];
  readonly partial = new Map<Node, readonly string[]>();
  readonly sharded: Map<Node, string>;
  readonly #placed: Placed;
  readonly #byExpert: ByExpert;
  readonly #now = new Map<Node, Node>();
  readonly #wholes = new Map<Node, Node>();

  constructor(placed: Placed, byExpert: ByExpert) {
    this.#placed = placed;
    this.#byExpert = byExpert;
    this.sharded = new Map(byExpert.sharded);
  }

  /** Add what stands for `node`; its inputs have been added. */
  convert(node: Node): void {
    const own = this.#ownParts(node);
    const kept = this.#keptParts(node);
    const inputs = node.inputs.map((input) =>
      kept ? this.#now.get(input)! : this.whole(input)
    );
    const same = inputs.every((input, i) => input === node.inputs[i]);
    const now = same ? node : { ...node, inputs } as Node;
    this.nodes.push(now);
    this.#now.set(node, now);
    const expert = this.#byExpert.sharded.get(node);
    if (expert !== undefined) this.sharded.set(now, expert);
    const over = this.#inOrder([...own, ...kept ?? []]);
    if (over.length > 0) this.partial.set(now, over);
  }

  /** All of a value, on every rank. */
  whole(node: Node): Node {
    const now = this.#now.get(node)!;
    const over = this.partial.get(now);
    if (over === undefined) return now;
    const known = this.#wholes.get(now);
    if (known) return known;
    const all: Node = {
      primitive: "allReduce",
      inputs: [now],
      params: { over },
      ...{ axes: now.axes, dtype: now.dtype, span: now.span },
    };
    this.nodes.push(all);
    this.#wholes.set(now, all);
    const expert = this.sharded.get(now);
    if (expert !== undefined) this.sharded.set(all, expert);
    return all;
  }

  /** The mesh axes over which a node sums what its rank holds. */
  #ownParts(node: Node): readonly string[] {
    const { axes } = this.#placed;
    if (node.primitive === "scatter") {
      return this.#spreadOver(
        node.inputs[0]!.axes.filter((axis) => !node.axes.includes(axis)),
      );
    }
    if (node.primitive !== "accumulate") return [];
    const { over } = node.params;
    const [x] = node.inputs as [Node];
    const route = this.#byExpert.dispatched.get(x);
    if (isRouting(route) && over.includes(route.params.slot)) {
      // Every row lies on one rank: that of its expert, among those that share its tokens' mesh axes.
      const { tokens, expert } = route.params;
      const summed = new Set(tokens.flatMap((axis) => axes[axis]?.over ?? []));
      const apart = over.includes(expert) ? [] : axes[expert]?.over ?? [];
      return [...summed].filter((name) => !apart.includes(name));
    }
    const expert = this.#byExpert.sharded.get(x);
    return [
      ...this.#spreadOver(over),
      ...expert !== undefined && over.includes(expert)
        ? axes[expert]!.over ?? []
        : [],
    ];
  }

  #spreadOver(axes: readonly string[]): string[] {
    return axes.flatMap((axis) =>
      isSpread(this.#placed, axis) ? this.#placed.axes[axis]!.over! : []
    );
  }

  /** The mesh axes of parts that a node makes parts of the same sum from; undefined where it needs the whole. */
  #keptParts(node: Node): readonly string[] | undefined {
    const marks = node.inputs.map((input) =>
      this.partial.get(this.#now.get(input)!)
    );
    const over = marks.find((mark) => mark !== undefined);
    if (over === undefined) return [];
    const alike = marks.every((mark) =>
      mark === undefined || mark.join() === over.join()
    );
    const rule = PARTIAL[node.primitive] as (
      node: Node,
      parts: readonly boolean[],
    ) => boolean;
    const apart = [node, ...node.inputs].some(({ axes }) =>
      this.#spreadOver(axes).some((name) => over.includes(name))
    );
    const linear = alike && !apart && !this.#byExpert.dispatched.has(node) &&
      rule(node, marks.map((mark) => mark !== undefined));
    return linear ? over : undefined;
  }

  #inOrder(over: readonly string[]): string[] {
    const { mesh } = this.#placed;
    return mesh.map(({ name }) => name).filter((name) =>
      over.includes(name) && positionsOver(mesh, [name]) > 1
    );
  }
}
