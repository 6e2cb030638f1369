/** Builder of derivative nodes of any primitive. */

import type { DType } from "../../../spec/dtype.ts";
import { f32, i32, local } from "../../../spec/kernel/build.ts";
import type { Expr } from "../../../spec/kernel/tree.ts";
import { builtInLambda, scalarType } from "../evaluate/scalar.ts";
import type {
  AxisSize,
  Node,
  NodeOf,
  Phase,
  Primitive,
  PrimitiveParams,
  ScalarFunction,
} from "../graph.ts";
import { makeNode, type Written } from "../make_node.ts";
import { without } from "../messages.ts";
import { sameAxes, type TensorType } from "../operands.ts";

/** Facts about the graph that nodes are built for. */
export interface BuilderContext {
  readonly axes: { readonly [name: string]: AxisSize };
  /** Axes that may be long and are sharded over the mesh: tokens, slots, dynamic axes. */
  readonly rowAxes: ReadonlySet<string>;
  /** Expert axis of each slot axis. */
  readonly slots: ReadonlyMap<string, string>;
  /** Phase of the nodes. Absent: the forward pass. */
  readonly phase?: Phase;
}

/** Creates nodes at one source position, in one block. */
export class NodeBuilder {
  readonly context: BuilderContext;
  readonly origin: Omit<Written, "given">;
  readonly #micro: Pick<Node, "micro">;

  constructor(
    context: BuilderContext,
    { span, block, problems, micro }:
      & Omit<Written, "given">
      & Pick<Node, "micro">,
  ) {
    this.context = context;
    this.origin = { span, block, problems };
    this.#micro = micro === undefined ? {} : { micro };
  }

  /** A node of any primitive. */
  make<P extends Primitive>(
    primitive: P,
    inputs: readonly Node[],
    params: PrimitiveParams[P],
    given?: TensorType,
  ): Node {
    const { origin, context: { phase } } = this;
    const node = makeNode(primitive, inputs, params, {
      ...origin,
      given,
    }) as Node;
    return phase === undefined ? node : { ...node, ...this.#micro, phase };
  }

  /** Applies a scalar function to nodes. Each node has all axes of the later ones, alone or together with them. */
  apply(fn: ScalarFunction, inputs: readonly Node[], op = "map"): Node {
    return this.make("map", inputs, { lambda: builtInLambda(fn), op });
  }

  /** Applies an expression to nodes, the first of which has all axes. */
  map(f: (...xs: Expr[]) => Expr, ...inputs: readonly Node[]): Node {
    const parameters = inputs.map(({ dtype }) => scalarType(dtype));
    const result = f(...parameters.map((type, i) => local(`p${i}`, type)));
    return this.apply({ parameters, lets: [], result }, inputs);
  }

  /** A constant with the axes of `x`. */
  constant(value: number, x: Node): Node {
    return this.map(() => (x.dtype === "i32" ? i32 : f32)(value), x);
  }

  /** Casts `x` to a dtype. */
  cast(x: Node, dtype: DType): Node {
    if (x.dtype === dtype) return x;
    return this.make("cast", [x], {}, { axes: [], dtype });
  }

  /** Broadcasts `d`, which has some of the axes of `x`, to the axes of `x`. */
  broadcast(d: Node, x: Node): Node {
    return sameAxes(d.axes, x.axes) ? d : this.map((_, v) => v!, x, d);
  }

  /** The sum of nodes of one type. */
  add(a: Node, b: Node): Node {
    return this.map(
      (x, y) => ({ op: "binary", type: "f32", fn: "add", a: x!, b: y! }),
      a,
      b,
    );
  }

  /** Transposes `x` to this order of axes. */
  ordered(x: Node, axes: readonly string[]): Node {
    if (sameAxes(x.axes, axes)) return x;
    return this.make("transpose", [x], {}, { axes, dtype: x.dtype });
  }

  /** Sums `x` over the axes that `axes` lacks. */
  sumTo(x: Node, axes: readonly string[]): Node {
    const over = without(x.axes, axes);
    return this.ordered(this.#sum(x, over), axes);
  }

  #sum(x: Node, over: readonly string[]): Node {
    if (over.length === 0) return x;
    if (!this.#isLong(over)) return this.#reduced(x, over);
    const slot = over.find((axis) => this.context.slots.has(axis));
    // Rows are summed per expert; other axes of a row are summed first.
    const first = slot === undefined
      ? []
      : without(over, [slot, this.context.slots.get(slot)!]);
    return this.make("reduceSum", [this.#reduced(x, first)], {
      over: without(over, first),
    });
  }

  #reduced(x: Node, over: readonly string[]): Node {
    return over.reduce(
      (sum, axis) => this.make("reduce", [sum], { kind: "sum", over: axis }),
      x,
    );
  }

  /** The sum of all elements of `x`, axis by axis: equal on every mesh. */
  total(x: Node): Node {
    return x.axes.reduceRight(
      (sum, axis) => this.make("reduce", [sum], { kind: "sum", over: axis }),
      x,
    );
  }

  /** The product of `a` and `b`, summed over the axes that `like` lacks. */
  contract(a: Node, b: Node, like: Node): Node {
    const over = a.axes.filter((axis) =>
      b.axes.includes(axis) && !like.axes.includes(axis)
    );
    if (over.length === 0) {
      return this.map(
        (_, x, y) => ({ op: "binary", type: "f32", fn: "mul", a: x!, b: y! }),
        like,
        a,
        b,
      );
    }
    const sum = this.#isLong(over)
      ? this.make("reduceSum", [a, b], { over })
      : this.make("dot", [a, b], { over });
    return this.ordered(sum, like.axes);
  }

  #isLong(over: readonly string[]): boolean {
    return over.some((axis) => this.context.rowAxes.has(axis));
  }

  /** The number of elements along `axis` of `x`. */
  count(x: Node, axis: string): Node {
    return this.make("reduce", [this.constant(1, x)], {
      kind: "sum",
      over: axis,
    });
  }
}

/** Collects the facts that builders need. */
export function builderContext(
  axes: { readonly [name: string]: AxisSize },
  nodes: readonly Node[],
  phase?: Phase,
): BuilderContext {
  const rowAxes = new Set(
    Object.keys(axes).filter((axis) => axes[axis]!.dynamic),
  );
  const routings = nodes.filter((node): node is NodeOf<"route"> =>
    node.primitive === "route" || node.primitive === "choices"
  );
  for (const { params: { tokens, slot } } of routings) {
    for (const axis of [...tokens, slot]) rowAxes.add(axis);
  }
  const slots = new Map(
    routings.map(({ params }) => [params.slot, params.expert]),
  );
  return { axes, rowAxes, slots, ...phase === undefined ? {} : { phase } };
}
