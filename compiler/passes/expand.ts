/**
 * Expand: replaces dispatch and combine by their parts, by the strategy of each routing. Postcondition: no dispatch
 * remains; combine and combineTranspose use rows at the offsets they were sent from; every exchange of rows is a node.
 *
 * ```
 * dispatch = assign -> permute, gatherCounts -> allToAll -> received, group
 * combine  = allToAll back -> combine (the weighted sum in the order of choices)
 * ```
 *
 * A dropless routing on one rank moves no rows: its assign groups them at once, and experts read tokens in place,
 * except for rows that are weighted before the exchange or returned unchanged. A routing whose tokens are replicated in
 * its group has no exchange: each rank uses the rows of its own experts. In chunks, the nodes between dispatch and
 * combine are repeated once per chunk: the rows of some experts of every rank. With deduplication, rows are tokens, at
 * most one per rank and chunk. With `receiveRows`, the nodes between dispatch and combine follow a `rounds` node, and
 * their steps are repeated at run time. With experts over nodes, rows are sent to a rank of each node, deduplicated,
 * and forwarded by a second exchange within the node; rows return in the same way. Under `fast` numerics,
 * `localCombine` also pre-sums the returned rows of a token on each rank. Rows that are rounded to the format of an
 * exchange are encoded in it, if they are exchanged or permuted.
 */

import { groupSizeOf } from "../../spec/mesh.ts";
import { dispatchedNodes } from "../graph/routing/dispatched_nodes.ts";
import { roundedAs, roundLast, unrounded } from "../graph/round_exchanges.ts";
import {
  dropsChoices,
  type Graph,
  isWeighted,
  type Node,
  type NodeOf,
  originOf,
  type PrimitiveParams,
  type RoutingNode,
} from "../graph/graph.ts";
import {
  chunkName,
  type ExpandOptions,
  inParts,
  isReturn,
  needsAllRows,
  type Routed,
  type Sent,
} from "./routed.ts";
import { nodeLevels } from "./node_levels.ts";
import { roundsOf } from "./rounds.ts";
import { chunkExperts, splitsOf } from "./expert_ranges.ts";
import { deduplicates } from "./deduplicate.ts";

/**
 * Expands every dispatch and combine. Throws ModelError if chunks or rounds are requested and a node needs all rows at
 * once.
 */
export function expand(graph: Graph, options: ExpandOptions): Graph {
  const { nodes, outputs, states } = roundLast(graph);
  const expansion = new Expansion({ ...graph, nodes }, options);
  for (const node of nodes) expansion.add(node);
  const now = (named: { readonly [name: string]: Node }) =>
    Object.fromEntries(
      Object.entries(named).map(([name, node]) => [name, expansion.now(node)]),
    );
  return {
    axes: graph.axes,
    nodes: expansion.nodes,
    outputs: now(outputs),
    states: now(states),
  };
}

class Expansion {
  readonly nodes: Node[] = [];
  readonly #now = new Map<Node, Node>();
  readonly #routed = new Map<Node, Routed>();
  readonly #dispatched: ReadonlyMap<Node, Node>;
  /** Values that are combined as received. */
  readonly #untouched: ReadonlySet<Node>;
  /** Values whose rows are needed at the offsets they were sent from. */
  readonly #transposed: ReadonlySet<Node>;
  readonly #graph: Graph;
  readonly #options: ExpandOptions;

  constructor(graph: Graph, options: ExpandOptions) {
    this.#graph = graph;
    this.#options = options;
    this.#dispatched = dispatchedNodes(graph);
    this.#transposed = new Set(
      graph.nodes.flatMap(({ primitive, inputs }) =>
        primitive === "combineTranspose" ? inputs[0]! : []
      ),
    );
    this.#untouched = new Set(
      graph.nodes.flatMap((node) =>
        isReturn(node) ? unrounded(node.inputs[0]!) : []
      ),
    );
  }

  /** The replacement of a node. */
  now(node: Node): Node {
    return this.#now.get(node)!;
  }

  /** Adds the replacement of a node whose inputs have been added. */
  add(node: Node): void {
    if (node.primitive === "dispatch") return this.#dispatch(node);
    if (isReturn(node)) return this.#return(node);
    // Rows are rounded where they are sent.
    if (node.primitive === "round") return;
    const routed = this.#routed.get(this.#dispatched.get(node)!);
    if (routed && inParts(routed)) {
      routed.deferred.push(node);
      return;
    }
    this.#refuseChunks(node);
    this.#now.set(node, this.#copy(node, { of: (input) => this.now(input) }));
  }

  #copy(
    node: Node,
    { of, chunk }: { of(input: Node): Node; readonly chunk?: string },
  ): Node {
    const inputs = node.inputs.map(of);
    const same = inputs.every((input, i) => input === node.inputs[i]);
    if (same && chunk === undefined) return this.#push(node);
    return this.#push(
      { ...node, inputs, ...chunk === undefined ? {} : { chunk } } as Node,
    );
  }

  #push<N extends Node>(node: N): N {
    this.nodes.push(node);
    return node;
  }

  #make<P extends keyof PrimitiveParams>(
    of: Node,
    primitive: P,
    made:
      & Pick<NodeOf<P>, "params" | "inputs">
      & Partial<Pick<NodeOf<P>, "axes" | "dtype" | "chunk">>,
  ): NodeOf<P> {
    const { axes, dtype } = of;
    // Terms of rows are exchanged as they are.
    const { unreduced = [] } = made.inputs[0]?.sharding ?? {};
    const node = {
      primitive,
      axes,
      dtype,
      ...originOf(of),
      ...unreduced.length > 0 ? { sharding: { over: {}, unreduced } } : {},
      ...made,
    } as NodeOf<P>;
    this.nodes.push(node as unknown as Node);
    return node;
  }

  #dispatch(node: NodeOf<"dispatch">): void {
    const [x, route] = node.inputs as [Node, RoutingNode];
    const known = this.#routed.get(route);
    const routed = known ?? this.#route(node, route);
    const { assign, chunks, groups } = routed;
    const weighted = isWeighted(node);
    // Values that are weighted before the exchange, or returned unchanged, need one row per choice.
    const plain = !weighted && !this.#untouched.has(node);
    const once = assign.params.once && plain;
    // Rows are not moved: kernels find their tokens.
    const inPlace = assign.params.local && plain;
    const rows = this.#rounded(x, this.now(unrounded(x)), !inPlace);
    const permuted = inPlace ? undefined : this.#make(node, "permute", {
      inputs: [rows, assign as Node],
      params: { weighted, once },
    }) as Node;
    if (!known) this.#count(node, routed);
    const sent = permuted &&
      this.#toNode(routed, { node, sent: permuted, once });
    if (sent && routed.rounds) {
      routed.inFlight.push(sent);
      return;
    }
    const arrived = sent ? this.#send(routed, sent, 0) : rows;
    if (groups.length === 0) this.#group(node, routed);
    const received = this.#receive(node, routed, {
      arrived,
      once: sent?.once ?? once,
      inPlace,
      chunk: 0,
    });
    if (sent && chunks > 1) routed.inFlight.push(sent);
    else this.#now.set(node, received);
    if (known || assign.params.localOnly || !this.#options.check) return;
    const checked = routed.nodes ? [routed.nodes.group] : groups;
    this.#make(node, "checkIds", {
      inputs: [assign, ...checked] as Node[],
      params: {},
    });
  }

  #rounded(operand: Node, value: Node, encoded: boolean): Node {
    return operand.primitive === "round"
      ? this.#push(roundedAs(operand, value, encoded))
      : value;
  }

  /** Numbers the rows of a routing. */
  #route(node: NodeOf<"dispatch">, route: RoutingNode): Routed {
    const { placed, numerics } = this.#options;
    const [expert, slot] = node.axes as [string, string];
    const { over } = placed.axes[expert]!;
    const several = groupSizeOf(placed.mesh, over) > 1;
    const held = route.params.tokens.flatMap((axis) => placed.axes[axis]!.over);
    const far = several && over.every((name) => held.includes(name));
    const localOnly = several && !far;
    const levels = far ? nodeLevels(node, this.#options) : undefined;
    const splits = levels?.nodes.splits ?? splitsOf(placed, expert);
    const chunks = chunkExperts(splits, far ? this.#options.chunks : 1).length;
    const local = levels?.ranks.over ?? over;
    const rounds = far
      ? roundsOf(node, route, { ...this.#options, over: local })
      : undefined;
    const once = !localOnly && deduplicates(this.#graph, route, {
      placed,
      splits,
      chunks,
      asked: levels ? true : rounds ? false : this.#options.deduplicate,
    });
    const assign = this.#make(node, "assign", {
      inputs: [this.now(route)],
      params: {
        expert,
        slot,
        over: levels?.nodes.over ?? over,
        splits,
        chunks,
        once,
        sums: once && !levels && numerics === "fast",
        localOnly,
        local: !several && !dropsChoices(route),
      },
    });
    const routed: Routed = {
      assign,
      levels,
      over: far ? local : [],
      chunks,
      rounds,
      counts: assign as Node,
      groups: [],
      inFlight: [],
      deferred: [],
      returned: new Map(),
      values: Array.from({ length: chunks }, () => new Map<Node, Node>()),
    };
    this.#routed.set(route, routed);
    // Local rows are grouped when they are numbered, before any is read.
    if (assign.params.local) this.#group(node, routed);
    return routed;
  }

  /** Exchanges the row counts of every expert in the group. */
  #count(node: Node, routed: Routed): void {
    const { assign, over, levels } = routed;
    if (over.length === 0) return;
    const gather = (counts: Node, over: readonly string[]) =>
      this.#make(node, "gatherCounts", {
        inputs: [counts],
        params: { over },
      }) as Node;
    if (!levels) {
      routed.counts = gather(assign as Node, over);
      return;
    }
    const counts = gather(assign as Node, levels.nodes.over);
    const { expert, slot } = assign.params;
    const group = this.#make(node, "group", {
      inputs: [counts],
      params: { expert, slot, chunk: 0 },
    }) as Node;
    const forwarded = this.#make(node, "nodeCounts", {
      inputs: [counts],
      params: levels.ranks,
    }) as Node;
    routed.nodes = { counts, group, forwarded };
    routed.counts = gather(forwarded, over);
  }

  /** With two levels: sends rows to the nodes of their experts, where they are ordered for its ranks. */
  #toNode({ nodes }: Routed, of: Sent): Sent {
    if (!nodes) return of;
    const { node, sent, once } = of;
    const arrived = this.#make(node, "allToAll", {
      inputs: [sent, nodes.counts],
      params: { direction: "forward", chunk: 0, once },
    }) as Node;
    const moved = this.#make(node, "moveRows", {
      inputs: [arrived, nodes.group, nodes.forwarded],
      params: { direction: "forward", once },
    }) as Node;
    return { node, sent: moved, once: false };
  }

  /** With two levels: returns the rows of a node to their sources. */
  #fromNode({ nodes }: Routed, node: Node, rows: Node): Node {
    if (!nodes) return rows;
    const { axes, dtype } = rows;
    const moved = this.#make(node, "moveRows", {
      inputs: [rows, nodes.group, nodes.forwarded],
      params: { direction: "back", once: false },
      axes,
      dtype,
    }) as Node;
    return this.#make(node, "allToAll", {
      inputs: [moved, nodes.counts],
      params: { direction: "back", chunk: 0, once: false },
      axes,
      dtype,
    }) as Node;
  }

  /** Assigns received rows to experts. */
  #group(node: Node, { assign, chunks, counts, groups }: Routed): void {
    const { expert, slot } = assign.params;
    for (let chunk = 0; chunk < chunks; chunk++) {
      groups.push(
        this.#make(node, "group", {
          inputs: [counts],
          params: { expert, slot, chunk },
        }) as Node,
      );
    }
  }

  /** Sends the rows of a chunk to the ranks of their experts. */
  #send(
    { over, chunks, counts }: Routed,
    { node, sent, once }: Sent,
    chunk: number,
  ): Node {
    if (over.length === 0) return sent;
    return this.#make(node, "allToAll", {
      inputs: [sent, counts],
      params: { direction: "forward", chunk, once },
      ...chunkName(chunk, chunks),
    }) as Node;
  }

  /** The same rows, grouped by expert. */
  #receive(
    node: Node,
    { chunks, groups, values }: Routed,
    { arrived, once, chunk, inPlace = false }: {
      readonly arrived: Node;
      readonly once: boolean;
      readonly inPlace?: boolean;
      readonly chunk: number;
    },
  ): Node {
    const received = this.#make(node, "received", {
      inputs: [arrived, groups[chunk]!],
      params: { once, inPlace },
      ...chunkName(chunk, chunks),
    }) as Node;
    values[chunk]!.set(node, received);
    return received;
  }

  #return(node: NodeOf<"combine"> | NodeOf<"combineTranspose">): void {
    const [y, route] = node.inputs as [Node, Node];
    const routed = this.#routed.get(route)!;
    const rows = routed.returned.get(y) ?? this.#returnRows(node, y, routed);
    routed.returned.set(y, rows);
    const once = this.#sums(y, routed);
    const params = node.primitive === "combine"
      ? { weighted: isWeighted(node) && !once, once }
      : {};
    const inputs = [rows, routed.assign as Node];
    this.#now.set(node, this.#push({ ...node, inputs, params } as Node));
  }

  /** Whether the rows of a token are pre-summed before they return. */
  #sums(y: Node, { assign }: Routed): boolean {
    return assign.params.sums && !this.#transposed.has(y);
  }

  /** Returns the rows of a value to the offsets they were sent from. */
  #returnRows(
    node: NodeOf<"combine"> | NodeOf<"combineTranspose">,
    y: Node,
    routed: Routed,
  ): Node {
    const { over, chunks, values } = routed;
    if (routed.rounds) return this.#returnRounds(node, y, routed);
    if (chunks === 1) {
      const value = this.now(unrounded(y));
      return over.length === 0
        ? this.#rounded(y, value, false)
        : this.#sendBack(node, y, routed, { value, chunk: 0 });
    }
    const inFlight = routed.inFlight.splice(0);
    const deferred = routed.deferred.splice(0);
    let before: Node | undefined;
    for (const [chunk, made] of values.entries()) {
      // The next chunk is in flight while a chunk is computed.
      for (const rows of chunk + 1 < chunks ? inFlight : []) {
        const { node, once } = rows;
        const arrived = this.#send(routed, rows, chunk + 1);
        this.#receive(node, routed, { arrived, once, chunk: chunk + 1 });
      }
      for (const other of deferred) {
        made.set(
          other,
          this.#copy(other, {
            of: (input) => made.get(input) ?? this.now(input),
            ...chunkName(chunk, chunks),
          }),
        );
      }
      before = this.#sendBack(node, y, routed, {
        value: made.get(unrounded(y))!,
        chunk,
        ...before ? { before } : {},
      });
    }
    return before!;
  }

  /** Starts rounds that receive and compute the rows of `y`, and return them to the offsets they were sent from. */
  #returnRounds(
    node: NodeOf<"combine"> | NodeOf<"combineTranspose">,
    y: Node,
    routed: Routed,
  ): Node {
    const counts = this.#make(node, "rounds", {
      inputs: [routed.counts],
      params: routed.rounds!,
    }) as Node;
    const made = new Map<Node, Node>();
    const round = { ...routed, counts, groups: [], values: [made] };
    this.#group(node, round);
    const needed = new Set([unrounded(y)]);
    for (const other of [...routed.deferred].reverse()) {
      if (needed.has(other)) other.inputs.forEach((input) => needed.add(input));
    }
    for (const rows of routed.inFlight) {
      if (!needed.has(rows.node)) continue;
      const arrived = this.#send(round, rows, 0);
      this.#receive(rows.node, round, { arrived, once: false, chunk: 0 });
    }
    const of = (input: Node) => made.get(input) ?? this.now(input);
    for (const other of routed.deferred) {
      if (needed.has(other)) made.set(other, this.#copy(other, { of }));
    }
    const value = made.get(unrounded(y))!;
    return this.#sendBack(node, y, round, { value, chunk: 0 });
  }

  #sendBack(
    node: NodeOf<"combine"> | NodeOf<"combineTranspose">,
    y: Node,
    routed: Routed,
    { value, chunk, before }: {
      readonly value: Node;
      readonly chunk: number;
      readonly before?: Node;
    },
  ): Node {
    const { chunks, counts, groups } = routed;
    const { axes, dtype } = y;
    const once = node.primitive === "combine" && this.#sums(y, routed);
    const rows = once
      ? this.#make(node, "localCombine", {
        inputs: [value, groups[chunk]!],
        params: { weighted: isWeighted(node) },
        axes,
        dtype,
        ...chunkName(chunk, chunks),
      }) as Node
      : value;
    const returned = this.#make(node, "allToAll", {
      inputs: [
        this.#rounded(y, rows, true),
        counts,
        ...before ? [before] : [],
      ],
      params: { direction: "back", chunk, once },
      axes,
      dtype,
      ...chunkName(chunk, chunks),
    }) as Node;
    return this.#fromNode(routed, node, returned);
  }

  #refuseChunks(node: Node): void {
    const rows = node.inputs.some((input) => {
      const route = this.#dispatched.get(input);
      return route && inParts(this.#routed.get(route)!);
    });
    if (rows) throw needsAllRows(node, this.#options);
  }
}
