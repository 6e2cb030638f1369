/**
 * Partial: sums over what ranks hold parts of. A sum over placed rows that only differentiation makes is computed where
 * the rows are, and gives each rank a part of it; what is linear keeps parts apart, and all else gets the whole, or of
 * what updates a parameter the rank's own items. Holds after it: every value that is a part is marked with the mesh axes
 * over which the parts add up, and no output, state or parameter takes one.
 */

import { positionsOver } from "../../spec/mesh.ts";
import { type Graph, isRouting, type Node } from "../graph/graph.ts";
import { type Cut, Cutter, updateValues } from "./cuts.ts";
import { isSpread } from "./gather.ts";
import { type ByExpert, dispatchedNodes } from "./lower/params.ts";
import { PARTIAL } from "./partial_rules.ts";
import type { Placed } from "./placed.ts";
import { type Sharded, shardedNodes } from "./sharded.ts";

/** Node -> the mesh axes over whose ranks it is a sum. */
export type Partial = ReadonlyMap<Node, readonly string[]>;

/** A graph, and which of its values are parts of sums, or of which ranks have a part. */
export interface Summed {
  readonly graph: Graph;
  readonly placed: Placed;
  readonly partial: Partial;
  readonly sharded: Sharded;
}

/** What is asked for. */
export interface SumPartialsOptions {
  /** Whether ranks that hold the same parameter have parts of this state, which is kept of it. */
  dealsState(name: string): boolean;
}

/** Mark sums over placed rows as partial, and add them up where they are needed: once for each value. */
export function sumPartials(
  graph: Graph,
  placed: Placed,
  options: SumPartialsOptions,
): Summed {
  const dispatched = dispatchedNodes(graph);
  const sharded = shardedNodes(graph, placed, dispatched);
  const sums = new Sums(graph, placed, { dispatched, sharded, ...options });
  for (const node of graph.nodes) sums.convert(node);
  const outputs = Object.fromEntries(
    Object.entries(graph.outputs).map(([name, node]) =>
      [name, sums.whole(node)] as const
    ),
  );
  const states = sums.next();
  const own = sums.cutter.axes;
  const axes = { ...graph.axes };
  for (const [name, { size }] of Object.entries(own)) {
    axes[name] = { size, dynamic: false };
  }
  return {
    graph: { axes, nodes: sums.nodes, outputs, states },
    placed: { ...placed, axes: { ...placed.axes, ...own } },
    partial: sums.partial,
    sharded: sums.sharded,
  };
}

type Known = ByExpert & SumPartialsOptions;

class Sums {
  readonly nodes: Node[] = [];
  readonly partial = new Map<Node, readonly string[]>();
  readonly sharded = new Map<Node, readonly string[]>();
  readonly cutter: Cutter;
  readonly #graph: Graph;
  readonly #placed: Placed;
  readonly #known: Known;
  /** What updates are made of, with the parameter. */
  readonly #updates: ReadonlyMap<Node, Node>;
  readonly #now = new Map<Node, Node>();
  /** New nodes of which the rank has its own items. */
  readonly #cuts = new Map<Node, Cut>();
  /** Nodes that were made of others, by those and what was made. */
  readonly #made = new Map<Node, Map<string, Node>>();

  constructor(graph: Graph, placed: Placed, known: Known) {
    this.#graph = graph;
    this.#placed = placed;
    this.#known = known;
    this.#updates = updateValues(graph);
    this.cutter = new Cutter(placed);
  }

  /** Add what stands for `node`; its inputs have been added. */
  convert(node: Node): void {
    // What is remembered is added when it is known how it is used.
    if (this.#canDeal(node)) return;
    if (this.#convertOwn(node)) return;
    const own = this.#ownParts(node);
    const kept = this.#keptParts(node);
    const inputs = node.inputs.map((input) =>
      kept ? this.#of(input) : this.whole(input)
    );
    const same = inputs.every((input, i) => input === node.inputs[i]);
    const now = same ? node : { ...node, inputs } as Node;
    this.#set(node, now, this.#known.sharded.get(node) ?? []);
    this.#mark(now, [...own, ...kept ?? []]);
  }

  /** All of a value, on every rank. */
  whole(node: Node): Node {
    const now = this.#of(node);
    const cut = this.#cuts.get(now);
    if (cut) return this.#gather(now, cut);
    const over = this.partial.get(now);
    if (over === undefined) return now;
    const possible = this.#cutOf(node);
    if (possible) return this.#gather(this.#scatter(now, possible), possible);
    const { axes } = now;
    return this.#make(now, { primitive: "allReduce", params: { over }, axes });
  }

  /** The next values: of what is dealt the rank's own items, of all else everything. */
  next(): { [name: string]: Node } {
    const leaves = new Map(
      this.#graph.nodes.flatMap((node) =>
        node.primitive === "state" ? [[node.params.name, node] as const] : []
      ),
    );
    return Object.fromEntries(
      Object.entries(this.#graph.states).map(([name, node]) => {
        const leaf = leaves.get(name);
        const cut = leaf && this.#cuts.get(this.#of(leaf));
        return [name, cut ? this.#part(node, cut) : this.whole(node)];
      }),
    );
  }

  /** What stands for a node. */
  #of(node: Node): Node {
    if (!this.#now.has(node)) {
      // A state that nothing has asked a part of.
      this.#set(node, node, this.#known.sharded.get(node) ?? []);
    }
    return this.#now.get(node)!;
  }

  /** How a value lies apart on the ranks, so far. */
  #ownOf(node: Node): Cut | undefined {
    const now = this.#now.get(node);
    return now && this.#cuts.get(now);
  }

  /** Over which mesh axes a value is a sum, so far. */
  #partOf(node: Node): readonly string[] | undefined {
    const now = this.#now.get(node);
    return now && this.partial.get(now);
  }

  #set(node: Node, now: Node, own: readonly string[]): void {
    this.nodes.push(now);
    this.#now.set(node, now);
    if (own.length > 0) this.sharded.set(now, own);
  }

  #mark(now: Node, over: readonly string[]): void {
    const { mesh } = this.#placed;
    const names = mesh.map(({ name }) => name).filter((name) =>
      over.includes(name) && positionsOver(mesh, [name]) > 1
    );
    if (names.length > 0) this.partial.set(now, names);
  }

  /** Whether a node is what an optimizer remembers, and ranks are to have parts of it. */
  #canDeal(node: Node): boolean {
    return node.primitive === "state" && this.#updates.has(node) &&
      this.#known.dealsState(node.params.name);
  }

  /** How a value that is a part of a sum, and updates a parameter, is cut when it is added up. */
  #cutOf(node: Node): Cut | undefined {
    const over = this.#partOf(node);
    const parameter = this.#updates.get(node);
    if (over === undefined || parameter === undefined) return undefined;
    return this.cutter.cut(
      parameter,
      over,
      this.#known.sharded.get(node) ?? [],
    );
  }

  /**
   * Add a node that works on the rank's own items of an operand: elementwise work on a gradient that is to be added up, and
   * sums over all items. False where it does not.
   */
  #convertOwn(node: Node): boolean {
    const cut = this.#ownCut(node);
    if (cut === undefined) return false;
    const inputs = node.inputs.map((input) => this.#part(input, cut));
    const rename = (axis: string) => axis === cut.axis ? cut.to : axis;
    const axes = node.axes.map(rename);
    const held = this.#known.sharded.get(node) ?? [];
    if (node.primitive === "accumulate") {
      const { over } = node.params;
      const params = { over: over.map(rename) };
      const now: Node = { ...node, inputs, params };
      this.#set(node, now, held);
      this.#mark(now, [...this.#ownParts(node), ...cut.over]);
      return true;
    }
    const now = { ...node, inputs, axes } as Node;
    this.#set(node, now, [...held, cut.to]);
    this.#cuts.set(now, cut);
    return true;
  }

  #ownCut(node: Node): Cut | undefined {
    const cuts = node.inputs.map((input) => this.#ownOf(input));
    if (node.primitive === "accumulate") {
      const [cut] = cuts;
      const sums = cut && node.inputs.length === 1 &&
        node.params.over.includes(cut.axis);
      return sums ? cut : undefined;
    }
    if (node.primitive !== "map" && node.primitive !== "cast") return undefined;
    if (this.#keepsParts(node)) return undefined;
    const possible = node.inputs.map((input, i) =>
      cuts[i] ?? this.#cutOf(input)
    );
    const cut = possible.find((cut) => cut !== undefined);
    if (cut === undefined || !node.axes.includes(cut.axis)) return undefined;
    const fits = node.inputs.every((input, i) =>
      possible[i] === undefined
        ? input.primitive !== "state" || this.#canDeal(input) ||
          !input.axes.includes(cut.axis)
        : possible[i] === cut
    );
    return fits ? cut : undefined;
  }

  /** The rank's own items of a value; all of one that lacks the axis. */
  #part(node: Node, cut: Cut): Node {
    if (!node.axes.includes(cut.axis)) return this.whole(node);
    const held = this.#known.sharded.get(node) ?? [];
    if (this.#canDeal(node) && !this.#now.has(node)) {
      const axes = node.axes.map((axis) => axis === cut.axis ? cut.to : axis);
      const now = { ...node, axes } as Node;
      this.#set(node, now, [...held, cut.to]);
      this.#cuts.set(now, cut);
      return now;
    }
    const now = this.#of(node);
    if (this.#cuts.get(now) === cut) return now;
    if (this.partial.has(now) && this.#cutOf(node) === cut) {
      return this.#scatter(now, cut);
    }
    const { axis, to } = cut;
    const params = { whole: axis, to };
    const axes = node.axes.map((name) => name === axis ? to : name);
    return this.#make(
      this.whole(node),
      { primitive: "take", params, axes },
      [...held, to],
    );
  }

  #scatter(now: Node, { axis, to, over }: Cut): Node {
    const axes = now.axes.map((name) => name === axis ? to : name);
    const params = { over, axis, to };
    return this.#make(now, { primitive: "reduceScatter", params, axes }, [
      ...this.sharded.get(now) ?? [],
      to,
    ]);
  }

  #gather(now: Node, { axis, to, over }: Cut): Node {
    const axes = now.axes.map((name) => name === to ? axis : name);
    const held = (this.sharded.get(now) ?? []).filter((name) => name !== to);
    const params = { over, axis: to, to: axis };
    return this.#make(now, { primitive: "allGather", params, axes }, held);
  }

  /** A node made of another one by placement, once. */
  #make(
    of: Node,
    made: Pick<Node, "primitive" | "params" | "axes">,
    own: readonly string[] = this.sharded.get(of) ?? [],
  ): Node {
    const known = this.#made.get(of) ?? new Map<string, Node>();
    this.#made.set(of, known);
    const key = JSON.stringify([made.primitive, made.params]);
    const before = known.get(key);
    if (before) return before;
    const node = { ...of, ...made, inputs: [of] } as Node;
    this.nodes.push(node);
    known.set(key, node);
    if (own.length > 0) this.sharded.set(node, own);
    return node;
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
    const route = this.#known.dispatched.get(x);
    if (isRouting(route) && over.includes(route.params.slot)) {
      // Every row lies on one rank: that of its expert, among those that share its tokens' mesh axes.
      const { tokens, expert } = route.params;
      const summed = new Set(tokens.flatMap((axis) => axes[axis]?.over ?? []));
      const apart = over.includes(expert) ? [] : axes[expert]?.over ?? [];
      return [...summed].filter((name) => !apart.includes(name));
    }
    const held = this.#known.sharded.get(x) ?? [];
    return [
      ...this.#spreadOver(over),
      ...held.flatMap((axis) =>
        over.includes(axis) ? axes[axis]!.over ?? [] : []
      ),
    ];
  }

  #spreadOver(axes: readonly string[]): string[] {
    return axes.flatMap((axis) =>
      isSpread(this.#placed, axis) ? this.#placed.axes[axis]!.over! : []
    );
  }

  /** Whether a node makes parts of parts. */
  #keepsParts(node: Node): boolean {
    return (this.#keptParts(node) ?? []).length > 0;
  }

  /** The mesh axes of parts that a node makes parts of the same sum from; undefined where it needs the whole. */
  #keptParts(node: Node): readonly string[] | undefined {
    const marks = node.inputs.map((input) => this.#partOf(input));
    const over = marks.find((mark) => mark !== undefined);
    const own = node.inputs.some((input) => this.#ownOf(input));
    if (over === undefined) return own ? undefined : [];
    // What has been added up once is not sent again.
    const added = node.inputs.every((input, i) =>
      marks[i] === undefined || this.#made.has(this.#of(input))
    );
    if (added) return undefined;
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
    const linear = alike && !apart && !own &&
      !this.#known.dispatched.has(node) &&
      rule(node, marks.map((mark) => mark !== undefined));
    return linear ? over : undefined;
  }
}
