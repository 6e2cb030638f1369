/**
 * Cuts: along which axis the ranks that hold the same parameter have parts of what its update is made of: of its
 * gradient, and where the optimizer's state is dealt, of that and of the next value. This only looks; `partial.ts` cuts.
 */

import { positionsOver } from "../../spec/mesh.ts";
import type { PlanAxis } from "../../spec/plan.ts";
import type { Graph, Node } from "../graph/graph.ts";
import { routeOperand } from "../graph/routing.ts";
import { sameAxes } from "../graph/rules.ts";
import type { Placed } from "./placed.ts";

/** An axis of which the positions over some mesh axes have parts, called `to` where they are apart. */
export interface Cut {
  readonly axis: string;
  readonly to: string;
  readonly over: readonly string[];
}

/**
 * What the next values of parameters are made of element by element, each with its parameter: gradients, and what is done
 * with them. What those are made of is not there, nor is a selection bias: of its load, a number for each expert, every
 * rank needs all.
 */
export function updateValues({ nodes, states }: Graph): Map<Node, Node> {
  const found = new Map<Node, Node>();
  const biases = new Set<Node | undefined>(
    nodes.map((node) =>
      node.primitive === "route" ? routeOperand(node, "bias") : undefined
    ),
  );
  for (const parameter of nodes) {
    if (parameter.primitive !== "param" || biases.has(parameter)) continue;
    const visit = (node: Node): void => {
      if (node === parameter || found.has(node)) return;
      if (!sameAxes(node.axes, parameter.axes)) return;
      found.set(node, parameter);
      if (node.primitive === "map" || node.primitive === "cast") {
        node.inputs.forEach(visit);
      }
    };
    const next = states[parameter.params.name];
    if (next) visit(next);
  }
  return found;
}

/** Makes cuts, and the axes of parts that they need. */
export class Cutter {
  /** Axes of parts, by name, with where they lie. */
  readonly axes: { [name: string]: PlanAxis } = {};
  readonly #placed: Placed;
  readonly #cuts = new Map<string, Cut>();

  constructor(placed: Placed) {
    this.#placed = placed;
  }

  /**
   * How values with the axes of a parameter are cut over these mesh axes; `held` are axes of which ranks have parts already.
   * The first of the axes of which a rank has least; undefined: none has an item for each position.
   */
  cut(
    parameter: Node,
    over: readonly string[],
    held: readonly string[],
  ): Cut | undefined {
    const { mesh, axes } = this.#placed;
    const positions = positionsOver(mesh, over);
    const free = parameter.axes.filter((axis) =>
      !held.includes(axis) && !axes[axis]!.dynamic &&
      axes[axis]!.size >= positions
    );
    const share = (axis: string) => {
      const { size } = axes[axis]!;
      return eachOf(size, positions) / size;
    };
    const least = Math.min(...free.map(share));
    const axis = free.find((axis) => share(axis) === least);
    return axis === undefined ? undefined : this.#named(axis, over);
  }

  #named(axis: string, over: readonly string[]): Cut {
    const key = `${axis} ${over.join("+")}`;
    const known = this.#cuts.get(key);
    if (known) return known;
    const { mesh, axes } = this.#placed;
    let to = `own ${axis}`;
    if (to in axes || to in this.axes) to = `own ${axis} of ${over.join("+")}`;
    const { size } = axes[axis]!;
    const positions = positionsOver(mesh, over);
    const each = eachOf(size, positions);
    const table = Array.from(
      { length: positions },
      (_, p) =>
        Array.from(
          { length: Math.min(each, size - p * each) },
          (_, i) => p * each + i,
        ),
    );
    this.axes[to] = { size, over, table };
    const cut = { axis, to, over };
    this.#cuts.set(key, cut);
    return cut;
  }
}

/** How many items each position has, but for the last ones. */
function eachOf(size: number, positions: number): number {
  return Math.ceil(size / positions);
}
