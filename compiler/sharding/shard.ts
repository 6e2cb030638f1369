/**
 * Shard: assigns a sharding to every value, and inserts a collective if a value has another sharding than its user
 * requires. It slices instead of gathering where possible; weights and states stay, activations move. Postcondition:
 * every node has a sharding, operands of a node agree on shared axes, and no output or state is unreduced.
 */

import { dispatchedNodes } from "../graph/routing/dispatched_nodes.ts";
import {
  type Graph,
  isRouting,
  type Node,
  originOf,
  type Primitive,
} from "../graph/graph.ts";
import type { Dispatcher } from "../../spec/strategies.ts";
import { agree } from "./agree.ts";
import { checkEqualBlocks, segmentsOfRank } from "./check.ts";
import { DISPATCHER_RULES, type DispatcherRule } from "./dispatchers.ts";
import { expertLeaves } from "./expert_leaves.ts";
import { type AxisFacts, leavesOf, placedOver } from "./local_axes.ts";
import { knownOf } from "./known.ts";
import { Resharding } from "./reshard.ts";
import type { Known, Rule } from "../graph/sharding_rule.ts";
import { RULES } from "./rules.ts";
import {
  type Over,
  overOf,
  type Sharding,
  tidyOver,
} from "../graph/sharding.ts";
import { type Partition, partitionOf, updateValues } from "./updates.ts";

/** Options besides the placement. */
export interface ShardOptions {
  /** Whether this optimizer state is sharded over ranks with the same parameter (ZeRO-1). */
  shardsState(name: string): boolean;
  /** Exchange of tokens with experts on other ranks. Default: allToAll. */
  readonly dispatcher?: Dispatcher | undefined;
  /** Whether ranks combine the terms of rows and then add the results, instead of the terms first. Default: false. */
  readonly combinesTerms?: boolean;
  /** Whether the parameter is sharded too, and gathered before its use (ZeRO-3). */
  readonly shardsParameters?: boolean;
}

/** Assigns a sharding to every value. Throws PlacementError and ModelError. */
export function shard(facts: AxisFacts, options: ShardOptions): Graph {
  const { graph, partitions } = shardOnce(facts, options);
  // A parameter is sharded like its reduced gradient, which is known only at the end of the graph.
  return options.shardsParameters
    ? shardOnce(facts, options, partitions).graph
    : graph;
}

/**
 * The graph with shardings, and the partition of each parameter's gradient. `gradients`: partitions that parameters are
 * stored by.
 */
function shardOnce(
  facts: AxisFacts,
  options: ShardOptions,
  gradients: ReadonlyMap<Node, Partition> = new Map(),
): {
  readonly graph: Graph;
  readonly partitions: ReadonlyMap<Node, Partition>;
} {
  const shards = new Shards(facts, options, gradients);
  const { graph } = facts;
  for (const node of graph.nodes) shards.convert(node);
  const outputs = Object.fromEntries(
    Object.entries(graph.outputs).map(([name, node]) =>
      [name, shards.output(node)] as const
    ),
  );
  const states = shards.nextStates();
  return {
    graph: { axes: graph.axes, nodes: shards.nodes, outputs, states },
    partitions: shards.partitions,
  };
}

class Shards {
  readonly #facts: AxisFacts;
  readonly #options: ShardOptions;
  readonly #rule: DispatcherRule;
  readonly #known: Known;
  readonly #move: Resharding;
  readonly #dispatched: ReadonlyMap<Node, Node>;
  readonly #byExpert: ReadonlySet<Node>;
  /** Elementwise update nodes, with their parameter. */
  readonly #updates: ReadonlyMap<Node, Node>;
  /** Parameters that are sharded beyond their placement. */
  readonly #stored: ReadonlyMap<Node, Partition>;
  /** Gathered parameters, for each phase. */
  readonly #gathered = new Map<string, Node>();
  /** Partitions of the gradients of parameters. */
  readonly partitions = new Map<Node, Partition>();
  readonly #now = new Map<Node, Node>();
  /** Sharding of the tokens of a routing during expert computation. */
  readonly #tokens = new Map<Node, Over>();

  constructor(
    facts: AxisFacts,
    options: ShardOptions,
    gradients: ReadonlyMap<Node, Partition>,
  ) {
    this.#facts = facts;
    this.#options = options;
    this.#rule = DISPATCHER_RULES[options.dispatcher ?? "allToAll"];
    this.#move = new Resharding(facts);
    this.#dispatched = dispatchedNodes(facts.graph);
    this.#byExpert = expertLeaves(facts.graph, this.#dispatched);
    this.#updates = updateValues(facts.graph);
    this.#known = knownOf(facts, {
      tokensOver: (route, axis) => this.#tokensOver(route, axis),
      expertsOver: (axis) => this.#rule.experts(placedOver(facts, axis)),
    });
    this.#stored = this.#storedAs(gradients);
  }

  /**
   * Storage sharding of parameters: experts' parameters over the mesh axes of experts, others over the mesh axes of
   * their gradients' reduction that do not shard them yet.
   */
  #storedAs(gradients: ReadonlyMap<Node, Partition>): Map<Node, Partition> {
    const stored = new Map<Node, Partition>();
    for (const node of this.#byExpert) {
      if (node.primitive !== "param") continue;
      for (const axis of node.axes.filter((a) => this.#facts.experts.has(a))) {
        const used = this.#known.expertsOver(axis);
        const over = placedOver(this.#facts, axis)
          .filter((name) => !used.includes(name));
        if (over.length === 0) continue;
        checkEqualBlocks(this.#facts, axis, over);
        stored.set(node, { axis, over });
      }
    }
    for (const [parameter, gradient] of gradients) {
      const { over } = this.#placed(parameter);
      const taken = Object.values(over).flat();
      const unreduced = gradient.over.filter((name) => !taken.includes(name));
      if (unreduced.length === 0) continue;
      const partition = partitionOf(this.#facts, parameter, {
        over,
        unreduced,
      });
      if (partition) stored.set(parameter, partition);
    }
    return stored;
  }

  get nodes(): readonly Node[] {
    return this.#move.nodes;
  }

  /** Adds the replacement of `node`, whose inputs have been added. */
  convert(node: Node): void {
    const { primitive } = node;
    if (primitive === "state" && this.#isFree(node)) return;
    if (
      primitive === "input" || primitive === "param" || primitive === "state"
    ) {
      const { over } = this.#placed(node);
      const partition = this.#stored.get(node);
      this.#set(node, node, {
        over: partition ? { ...over, [partition.axis]: partition.over } : over,
        unreduced: [],
      });
      return;
    }
    if (primitive === "round" && this.#isTerm(node.inputs[0]!)) {
      this.#now.set(node, this.#of(node.inputs[0]!));
      return;
    }
    if (primitive === "dispatch") this.#startDispatch(node);
    const rule = RULES[primitive] as unknown as Rule<Primitive>;
    const taken = node.inputs.map((input) => this.#taken(input, node));
    const keeps = this.#storedTerms(node, rule, taken);
    const values = taken.map((input, i) => ({
      axes: input.axes,
      sharding: this.#offered(input, keeps.includes(i)),
      fixed: this.#isFixed(node, input),
    }));
    const roles = (operand: number, axis: string) =>
      rule.role(node as never, { operand, axis }, this.#known);
    const { over, reduced } = agree(node, values, {
      roles,
      isRagged: (axis) => this.#known.isRagged(axis),
    });
    const inputs = taken.map((input, i) =>
      this.#operand(input, {
        over: wantedOver(input, i, { over, roles, now: values[i]!.sharding }),
        unreduced: keeps.includes(i) ? this.#of(input).sharding!.unreduced : [],
        stage: this.#stageOf(node),
      })
    );
    const segments = segmentsOfRank(this.#facts, node, over, reduced);
    const result = tidyOver({
      ...Object.fromEntries(
        node.axes.map((axis) => [axis, over[axis] ?? this.#stays(taken, axis)]),
      ),
      ...rule.result?.(node as never, over, this.#known),
    });
    const onAxes = new Set(Object.values(result).flat());
    // In the order of the summed axis, so that neighbours are added first.
    const unreduced = [
      ...new Set([
        ...reduced.filter((name) => !onAxes.has(name)),
        ...rule.terms?.(node as never, this.#known) ?? [],
        ...keeps.flatMap((i) => this.#of(taken[i]!).sharding!.unreduced),
      ]),
    ];
    const same = segments === undefined &&
      inputs.every((input, i) => input === node.inputs[i]);
    const params = segments === undefined
      ? node.params
      : { ...node.params, segments };
    this.#set(node, same ? node : { ...node, inputs, params } as Node, {
      over: result,
      unreduced,
    });
  }

  /** An output: reduced, with its sharding. The reader joins its shards. */
  output(node: Node): Node {
    const { over } = this.#of(node).sharding!;
    return this.#to(node, { over, unreduced: [] });
  }

  /** The next values of states and parameters, with their sharding. */
  nextStates(): { [name: string]: Node } {
    const leaves = new Map([
      ...leavesOf(this.#facts.graph, "param"),
      ...leavesOf(this.#facts.graph, "state"),
    ]);
    return Object.fromEntries(
      Object.entries(this.#facts.graph.states).map(([name, node]) => {
        const leaf = leaves.get(name)!;
        const { over, stage } = this.#of(leaf).sharding!;
        return [name, this.#to(node, { over, unreduced: [], stage })];
      }),
    );
  }

  /** The replacement of a node. */
  #of(node: Node): Node {
    // A state without a sharded update.
    if (!this.#now.has(node)) this.#set(node, node, this.#placed(node));
    return this.#now.get(node)!;
  }

  #set(node: Node, now: Node, sharding: Sharding): void {
    const placed = { stage: this.#stageOf(node), ...sharding };
    this.#now.set(node, this.#move.add({ ...now, sharding: placed } as Node));
  }

  #stageOf(node: Node): number | undefined {
    return this.#facts.stages?.of.get(node);
  }

  /** The placement of a leaf: that of its axes, with each mesh axis once. */
  #placed(node: Node): Sharding {
    const used = new Set<string>();
    const over = Object.fromEntries(node.axes.map((axis) => {
      const placed = this.#facts.experts.has(axis)
        ? this.#known.expertsOver(axis)
        : placedOver(this.#facts, axis);
      const free = this.#isPlaced(node, axis)
        ? placed.filter((name) => !used.has(name))
        : [];
      for (const name of free) used.add(name);
      return [axis, free] as const;
    }));
    return { over: tidyOver(over), unreduced: [] };
  }

  /**
   * Whether an axis of a leaf is placed: experts only for parameters of experts; tokens only for inputs, not for
   * states.
   */
  #isPlaced(node: Node, axis: string): boolean {
    if (this.#facts.experts.has(axis)) return this.#byExpert.has(node);
    if (node.primitive === "input") return true;
    return !this.#known.isRagged(axis);
  }

  /** An axis of the result whose sharding no operand determines. */
  #stays(taken: readonly Node[], axis: string): readonly string[] {
    const from = taken.find((input) => input.axes.includes(axis));
    return from ? overOf(this.#offered(from, true), axis) : [];
  }

  /**
   * The operand of `user` for an input. Updates use a parameter in its stored sharding, other nodes in its placed one.
   * It is gathered for the forward pass and again for the backward pass, so that it need not be saved.
   */
  #taken(input: Node, user: Node): Node {
    const partition = this.#stored.get(input);
    if (!partition || user.phase === "update") return input;
    const key = `${
      input.primitive === "param" ? input.params.name : ""
    } ${user.phase}`;
    const before = this.#gathered.get(key);
    if (before) return before;
    const { axis, over } = partition;
    const gathered = {
      primitive: "allGather",
      params: { over, axis, to: axis },
      inputs: [this.#of(input)],
      axes: input.axes,
      dtype: input.dtype,
      ...originOf(user),
    } as unknown as Node;
    this.#gathered.set(key, gathered);
    this.#set(gathered, gathered, {
      ...this.#placed(input),
      stage: this.#stageOf(input),
    });
    return gathered;
  }

  /** The sharding in which a value is offered: unreduced or reduced. */
  #offered(node: Node, terms: boolean): Sharding {
    if (this.#isFree(node) && !this.#now.has(node)) {
      return { over: {}, unreduced: [] };
    }
    const sharding = this.#of(node).sharding!;
    if (terms || sharding.unreduced.length === 0) return sharding;
    const partition = this.#partitionOf(node);
    const { over } = sharding;
    return {
      over: partition ? { ...over, [partition.axis]: partition.over } : over,
      unreduced: [],
    };
  }

  /** A sharded optimizer state. Its sharding is determined by its use. */
  #isFree(node: Node): boolean {
    if (node.primitive !== "state") return false;
    const parameter = this.#updates.get(node);
    return parameter !== undefined &&
      (this.#stored.has(parameter) ||
        this.#options.shardsState(node.params.name));
  }

  /** Whether an operand of an update must keep its sharding. */
  #isFixed(node: Node, input: Node): boolean {
    return this.#updates.has(node) && input.primitive === "state" &&
      (!this.#isFree(input) || this.#now.has(input));
  }

  /** The partition of a parameter's gradient: each rank receives the sum of its shard. */
  #partitionOf(node: Node): Partition | undefined {
    const parameter = this.#updates.get(node);
    const sharding = this.#now.get(node)?.sharding;
    if (!parameter || !sharding || sharding.unreduced.length === 0) {
      return undefined;
    }
    const stored = this.#options.shardsParameters
      ? undefined
      : this.#stored.get(parameter);
    const partition = stored ??
      partitionOf(this.#facts, parameter, sharding);
    if (partition) this.partitions.set(parameter, partition);
    return partition;
  }

  #operand(node: Node, wanted: Sharding): Node {
    if (this.#isFree(node) && !this.#now.has(node)) {
      const held = this.#placed(node).over;
      this.#set(node, node, {
        over: tidyOver({ ...held, ...wanted.over }),
        unreduced: [],
      });
      return this.#of(node);
    }
    return this.#to(node, wanted);
  }

  #to(node: Node, wanted: Sharding): Node {
    const now = this.#of(node);
    const { unreduced } = now.sharding!;
    const partition = unreduced.some((name) => !wanted.unreduced.includes(name))
      ? this.#partitionOf(node)
      : undefined;
    const scattered = partition
      ? this.#move.to(now, {
        over: { ...now.sharding!.over, [partition.axis]: partition.over },
        unreduced: wanted.unreduced,
        stage: wanted.stage,
      })
      : now;
    return this.#move.to(scattered, wanted);
  }

  /**
   * The operands whose terms carry over to the result: those of ops that only move elements, in gradients those of
   * linear ops, and with `combinesTerms` rows that are combined. Other operands are reduced first.
   */
  #storedTerms(
    node: Node,
    rule: Rule<Primitive>,
    taken: readonly Node[],
  ): number[] {
    const terms = taken.map((input) => {
      const { unreduced } = this.#offered(input, true);
      return unreduced.length > 0 ? unreduced : undefined;
    });
    const marked = terms.flatMap((over, i) => over ? [i] : []);
    if (marked.length === 0) return [];
    if (marked.every((i) => i === rule.moves)) return marked;
    if (node.primitive === "combine" && this.#isTerm(taken[0]!)) return marked;
    if (node.phase === undefined || this.#dispatched.has(node)) return [];
    const [first] = marked as [number];
    // Operands that have already been reduced are not reduced again.
    const added = marked.every((i) =>
      this.#move.isAddedUp(this.#of(taken[i]!))
    );
    const equal = marked.every((i) =>
      terms[i]!.join() === terms[first]!.join()
    );
    const apart = taken.some((input) =>
      Object.values(this.#offered(input, true).over).flat()
        .some((name) => terms[first]!.includes(name))
    );
    const partition = taken.some((input) => this.#isPartitioned(input));
    const linear = !added && equal && !apart && !partition &&
      rule.linear(node as never, terms.map((over) => over !== undefined));
    return linear ? marked : [];
  }

  /** Whether a value is a term of rows, which are added after they are combined, and are not rounded before. */
  #isTerm(rows: Node): boolean {
    return this.#options.combinesTerms === true && this.#dispatched.has(rows) &&
      this.#offered(rows, true).unreduced.length > 0;
  }

  /** Whether a value of an update is sharded. */
  #isPartitioned(node: Node): boolean {
    const parameter = this.#updates.get(node);
    const sharding = this.#now.get(node)?.sharding;
    if (!parameter || !sharding || sharding.unreduced.length > 0) return false;
    const placed = this.#placed(parameter);
    return node.axes.some((axis) =>
      overOf(sharding, axis).length > overOf(placed, axis).length
    );
  }

  /**
   * The dispatcher determines the sharding of tokens during expert computation from their sharding and that of experts.
   */
  #startDispatch(node: Node): void {
    const [x, route] = node.inputs as [Node, Node];
    if (!isRouting(route) || this.#tokens.has(route)) return;
    const { tokens, expert } = route.params;
    const { over } = this.#offered(x, false);
    const experts = placedOver(this.#facts, expert);
    const held = tokens.flatMap((axis) => over[axis] ?? []);
    const lacks = experts.filter((name) => !held.includes(name));
    this.#tokens.set(
      route,
      Object.fromEntries(tokens.map((axis, i) => [
        axis,
        this.#rule.tokens(over[axis] ?? [], {
          experts,
          missing: i === 0 ? lacks : [],
        }),
      ])),
    );
  }

  #tokensOver(route: Node, axis: string): readonly string[] {
    return this.#tokens.get(route)?.[axis] ?? [];
  }
}

/** The required sharding of an operand: as agreed, except along its local axes. */
function wantedOver(
  { axes }: Node,
  operand: number,
  { over, roles, now }: {
    readonly over: Over;
    readonly roles: (operand: number, axis: string) => unknown;
    readonly now: Sharding;
  },
): Over {
  return Object.fromEntries(
    axes.map((axis) => [
      axis,
      roles(operand, axis) === "local" ? overOf(now, axis) : over[axis] ?? [],
    ]),
  );
}
