/**
 * Gather: what needs all of an axis of which ranks hold parts gets all of it. Holds after it: such nodes work on a value
 * of the whole axis, the same on every rank, and what they keep of the axis is taken back to each rank's part. Values
 * never change, and nothing is gathered for a node that finds what it needs on its rank.
 */

import { positionsOver } from "../../spec/mesh.ts";
import type { PlanAxis } from "../../spec/plan.ts";
import type {
  Graph,
  Node,
  NodeOf,
  Primitive,
  PrimitiveParams,
} from "../graph/graph.ts";
import type { DType } from "../../spec/dtype.ts";
import { aliasesOf } from "./place.ts";
import type { Placed } from "./placed.ts";
import { WHOLE, wholeAxes } from "./whole_axes.ts";

/** A graph, and where its axes lie. */
export interface Gathered {
  readonly graph: Graph;
  readonly placed: Placed;
}

/** Insert what brings placed axes together and apart again. */
export function gatherWhole(graph: Graph, placed: Placed): Gathered {
  const gathering = new Gathering(placed);
  for (const node of graph.nodes) gathering.convert(node);
  const { nodes, wholes } = gathering;
  if (wholes.size === 0) return { graph, placed };
  const read = (named: { readonly [name: string]: Node }) =>
    Object.fromEntries(
      Object.entries(named).map((
        [name, node],
      ) => [name, gathering.tensor(node)]),
    );
  const axes = { ...graph.axes };
  const places: { [axis: string]: PlanAxis } = { ...placed.axes };
  for (const [part, all] of wholes) {
    axes[all] = graph.axes[part]!;
    const { size, dynamic } = graph.axes[part]!;
    places[all] = { size, ...dynamic ? { dynamic: true } : {}, all: part };
  }
  const whole: Graph = {
    axes,
    nodes,
    outputs: read(graph.outputs),
    states: read(graph.states),
  };
  const aliases = aliasesOf(whole);
  const counts = Object.keys(places).filter((name) =>
    places[name]!.dynamic && !aliases[name]
  );
  return { graph: whole, placed: { ...placed, axes: places, aliases, counts } };
}

/** A node of any primitive, before it is one. */
interface Made<P extends Primitive> {
  readonly primitive: P;
  readonly inputs: readonly Node[];
  readonly params: PrimitiveParams[P];
  readonly axes: readonly string[];
  readonly dtype: DType;
}

class Gathering {
  readonly nodes: Node[] = [];
  /** Placed axis -> the name of the whole of it. */
  readonly wholes = new Map<string, string>();
  readonly #placed: Placed;
  readonly #now = new Map<Node, Node>();
  /** Nodes that were made, by what they are. */
  readonly #made = new Map<string, Node>();
  readonly #numbers = new Map<Node, number>();
  /** Routings over whole axes -> how the ranks' parts of them are called. */
  readonly #routes = new Map<Node, ReadonlyMap<string, string>>();

  constructor(placed: Placed) {
    this.#placed = placed;
  }

  /** What stands for a node of the graph, as a tensor of the axes that it had. */
  tensor(node: Node): Node {
    return this.#now.get(node)!;
  }

  /** Add what stands for `node`; its inputs have been added. */
  convert(node: Node): void {
    const { axes } = this.#placed;
    const needed = wholeAxes(node, axes).filter((axis) =>
      isSpread(this.#placed, axis)
    );
    const rule = WHOLE[node.primitive].on as
      | ((params: unknown, whole: (axis: string) => string) => unknown)
      | undefined;
    const of = node.inputs[0] && this.#routes.get(this.tensor(node.inputs[0]));
    if (node.primitive === "part" && of) {
      this.#now.set(node, this.#part(node, of));
      return;
    }
    if (needed.length === 0 || rule === undefined) {
      const inputs = node.inputs.map((input) => this.#operand(input));
      const same = inputs.every((input, i) => input === node.inputs[i]);
      this.#now.set(node, this.#add(same ? node : { ...node, inputs } as Node));
      return;
    }
    const whole = (axis: string) =>
      needed.includes(axis) ? this.#wholeOf(axis) : axis;
    const made = this.#make({
      ...node,
      inputs: node.inputs.map((input) =>
        needed.reduce(
          (value, axis) => this.#gather(value, axis),
          this.#operand(input),
        )
      ),
      params: rule(node.params, whole) as never,
      axes: node.axes.map(whole),
    }, node);
    const names = new Map(needed.map((axis) => [whole(axis), axis]));
    if (node.primitive === "route") this.#routes.set(made, names);
    this.#now.set(
      node,
      node.primitive === "route" || node.primitive === "topK"
        ? made
        : this.#take(made, names),
    );
  }

  /** What stands for an operand: a routing over whole axes becomes one of the rank's own choices. */
  #operand(node: Node): Node {
    const now = this.tensor(node);
    const names = this.#routes.get(now);
    return names ? this.#choices(now as NodeOf<"route">, names) : now;
  }

  #choices(
    route: NodeOf<"route">,
    names: ReadonlyMap<string, string>,
  ): Node {
    const { rule, expert, slot, choice, operands } = route.params;
    const tokens = route.params.tokens.map((axis) => names.get(axis) ?? axis);
    const axes = [...tokens, choice];
    const part = (field: "index" | "weight" | "slot") =>
      this.#take(
        this.#make({
          primitive: "part",
          inputs: [route],
          params: { field },
          axes: route.axes,
          dtype: field === "weight" ? "f32" : "i32",
        }, route),
        names,
      );
    const slotted = rule.capacity !== undefined || operands.includes("mask");
    return this.#make({
      primitive: "choices",
      inputs: [
        part("index"),
        part("weight"),
        ...slotted ? [part("slot")] : [],
      ],
      params: { rule, expert, slot, choice, tokens, slotted },
      axes,
      dtype: "f32",
    }, route);
  }

  #part(node: NodeOf<"part">, names: ReadonlyMap<string, string>): Node {
    const wholeOf = new Map([...names].map(([all, part]) => [part, all]));
    const axes = node.axes.map((axis) => wholeOf.get(axis) ?? axis);
    const inputs = [this.tensor(node.inputs[0]!)];
    return this.#take(this.#make({ ...node, inputs, axes }, node), names);
  }

  #gather(value: Node, axis: string): Node {
    if (!value.axes.includes(axis)) return value;
    const to = this.#wholeOf(axis);
    return this.#make({
      primitive: "gather",
      inputs: [value],
      params: { axis, to },
      axes: value.axes.map((name) => name === axis ? to : name),
      dtype: value.dtype,
    }, value);
  }

  #take(value: Node, names: ReadonlyMap<string, string>): Node {
    return [...names].reduce((value, [whole, to]) => {
      if (!value.axes.includes(whole)) return value;
      return this.#make({
        primitive: "take",
        inputs: [value],
        params: { whole, to },
        axes: value.axes.map((name) => name === whole ? to : name),
        dtype: value.dtype,
      }, value);
    }, value);
  }

  /** A node of its own, once; it stands where `from` does in the model. */
  #make<P extends Primitive>(made: Made<P>, from: Node): Node {
    const { primitive, inputs, params, axes, dtype } = made;
    const key = JSON.stringify([
      primitive,
      inputs.map((input) => this.#numbers.get(input)),
      params,
      axes,
      dtype,
    ]);
    const known = this.#made.get(key);
    if (known) return known;
    const { span, phase } = from;
    const node = {
      ...{ primitive, inputs, params, axes, dtype, span },
      ...phase === undefined ? {} : { phase },
    } as unknown as Node;
    this.#made.set(key, node);
    return this.#add(node);
  }

  #add(node: Node): Node {
    this.#numbers.set(node, this.nodes.length);
    this.nodes.push(node);
    return node;
  }

  #wholeOf(axis: string): string {
    const known = this.wholes.get(axis);
    if (known) return known;
    const { axes } = this.#placed;
    let name = `all ${axis}`;
    while (name in axes) name = `all ${name}`;
    this.wholes.set(axis, name);
    return name;
  }
}

/** Whether ranks hold different parts of an axis. Experts are not dealt: only parameters lie by expert. */
export function isSpread(
  { mesh, axes, expertAxes }: Placed,
  axis: string,
): boolean {
  const over = axes[axis]?.over;
  return over !== undefined && !expertAxes.has(axis) &&
    positionsOver(mesh, over) > 1;
}
