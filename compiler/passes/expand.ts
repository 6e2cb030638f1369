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
 * most one per rank and chunk. With `receiveRows`, the nodes between dispatch and combine follow a `rounds` node, and their
 * steps are repeated at run time. Under `fast` numerics, `localCombine` also pre-sums the returned rows of a token on each
 * rank. Rows that are rounded to the format of an exchange are encoded in it, if they are exchanged or permuted.
 */

import { ModelError } from "../../spec/errors.ts";
import type { NumericsClass } from "../../spec/numerics.ts";
import { groupSizeOf } from "../../spec/mesh.ts";
import { dispatchedNodes } from "../graph/dispatched_nodes.ts";
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
import type { Placed } from "../sharding/placed.ts";
import { roundsOf } from "./rounds.ts";
import { chunkExperts, splitsOf } from "./expert_ranges.ts";
import { deduplicates } from "./deduplicate.ts";

/** The mesh, and the strategy of every routing. */
export interface ExpandOptions {
  readonly placed: Placed;
  /** Number of chunks of a dispatch, if its ranks have enough experts. */
  readonly chunks: number;
  /** Whether tokens are deduplicated. Undefined: if it saves enough. */
  readonly deduplicate: boolean | undefined;
  /** Rows that ranks have receive buffers for, see `Strategy`. Undefined: the worst case. */
  readonly receiveRows: string | undefined;
  readonly numerics: NumericsClass;
  /** Whether ids of choices are sent with every routing and compared on return. */
  readonly check: boolean;
}

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

/** State of the parts of one routing. */
interface Routed {
  readonly assign: NodeOf<"assign">;
  /** The mesh axes of its group of ranks. */
  readonly over: readonly string[];
  readonly chunks: number;
  /** Undefined: all rows are received at once. */
  readonly rounds: PrimitiveParams["rounds"] | undefined;
  /** Counts of every rank of the group. */
  counts: Node;
  /** Received rows, by chunk. */
  readonly groups: Node[];
  /** Values whose first chunk is in flight, or that are received in rounds. */
  readonly inFlight: {
    readonly node: Node;
    readonly sent: NodeOf<"permute">;
  }[];
  /** Nodes on rows before the combine, in order. */
  readonly deferred: Node[];
  /** Replacements of nodes on rows, by chunk. */
  readonly values: readonly Map<Node, Node>[];
  /** Returned rows, by sent value. */
  readonly returned: Map<Node, Node>;
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
    const node = {
      primitive,
      axes,
      dtype,
      ...originOf(of),
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
    const sent = inPlace ? undefined : this.#make(node, "permute", {
      inputs: [rows, assign as Node],
      params: { weighted, once },
    });
    if (!known) this.#count(node, routed);
    if (sent && routed.rounds) {
      routed.inFlight.push({ node, sent });
      return;
    }
    const arrived = sent ? this.#send(node, routed, { sent, chunk: 0 }) : rows;
    if (groups.length === 0) this.#group(node, routed);
    const dispatch = { arrived, once, inPlace, chunk: 0 };
    const received = this.#receive(node, routed, dispatch);
    if (sent && chunks > 1) routed.inFlight.push({ node, sent });
    else this.#now.set(node, received);
    if (known || assign.params.localOnly || !this.#options.check) return;
    this.#make(node, "checkIds", {
      inputs: [assign, ...groups] as Node[],
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
    const splits = splitsOf(placed, expert);
    const { over } = placed.axes[expert]!;
    const several = groupSizeOf(placed.mesh, over) > 1;
    const held = route.params.tokens.flatMap((axis) => placed.axes[axis]!.over);
    const far = several && over.every((name) => held.includes(name));
    const localOnly = several && !far;
    const chunks = chunkExperts(splits, far ? this.#options.chunks : 1).length;
    const rounds = far ? roundsOf(node, route, this.#options) : undefined;
    const once = !localOnly && deduplicates(this.#graph, route, {
      placed,
      splits,
      chunks,
      asked: rounds ? false : this.#options.deduplicate,
    });
    const assign = this.#make(node, "assign", {
      inputs: [this.now(route)],
      params: {
        expert,
        slot,
        chunks,
        once,
        sums: once && numerics === "fast",
        localOnly,
        local: !several && !dropsChoices(route),
      },
    });
    const routed: Routed = {
      assign,
      over: far ? over : [],
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
    const { assign, over } = routed;
    if (over.length === 0) return;
    routed.counts = this.#make(node, "gatherCounts", {
      inputs: [assign as Node],
      params: { over },
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
    node: Node,
    { over, chunks, counts }: Routed,
    { sent, chunk }: {
      readonly sent: NodeOf<"permute">;
      readonly chunk: number;
    },
  ): Node {
    if (over.length === 0) return sent as Node;
    return this.#make(node, "allToAll", {
      inputs: [sent as Node, counts],
      params: { direction: "forward", chunk, once: sent.params.once },
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
      for (const { node, sent } of chunk + 1 < chunks ? inFlight : []) {
        const next = { sent, once: sent.params.once, chunk: chunk + 1 };
        const arrived = this.#send(node, routed, next);
        this.#receive(node, routed, { ...next, arrived });
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
    for (const { node, sent } of routed.inFlight) {
      if (!needed.has(node)) continue;
      const dispatch = { sent, once: false, chunk: 0 };
      const arrived = this.#send(node, round, dispatch);
      this.#receive(node, round, { ...dispatch, arrived });
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
    return this.#make(node, "allToAll", {
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
  }

  #refuseChunks(node: Node): void {
    const rows = node.inputs.some((input) => {
      const route = this.#dispatched.get(input);
      return route && inParts(this.#routed.get(route)!);
    });
    if (!rows) return;
    const parts = this.#options.receiveRows === undefined
      ? ["chunks", "with one chunk"]
      : ["rounds", "without receiveRows"];
    throw new ModelError(
      `Cannot split a dispatch into ${
        parts[0]
      }: '${node.primitive}' needs all of its rows at once. Compile ${
        parts[1]
      }`,
      node.span,
    );
  }
}

/** Whether rows are received in parts. */
function inParts({ chunks, rounds }: Routed): boolean {
  return chunks > 1 || rounds !== undefined;
}

function isReturn(
  node: Node,
): node is NodeOf<"combine"> | NodeOf<"combineTranspose"> {
  return node.primitive === "combine" || node.primitive === "combineTranspose";
}

function chunkName(
  chunk: number,
  chunks: number,
): { readonly chunk?: string } {
  return chunks === 1 ? {} : { chunk: `chunk ${chunk + 1} of ${chunks}` };
}
