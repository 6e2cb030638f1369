/** The places of a value: all of a tensor, or the dispatched rows that a rank received. */

import {
  binary,
  div,
  load,
  mul,
  rem,
  u32,
} from "../../../spec/kernel/build.ts";
import type { Expr, Stmt } from "../../../spec/kernel/tree.ts";
import type { Size } from "../../../spec/size.ts";
import { isRouting, type Node } from "../../graph/graph.ts";
import { elementwise, elementwiseGrid } from "../../kernels/elementwise.ts";
import { type At, atFlat, localName, ROW } from "./at.ts";
import {
  addBuffer,
  addLaunch,
  fixedProduct,
  lengthOf,
  productOf,
  type RoutingBuffers,
  sizeOf,
  verbOf,
} from "./context.ts";
import { expertsOfRanks } from "./params.ts";
import type { KernelScope } from "./scope.ts";

/** Places in a row-major order. */
export interface Places {
  /** How many there are. */
  readonly count: Expr;
  /** How many there can be, as the host knows it. */
  readonly size: Size;
  at(index: Expr): At;
}

/** The places of `axes` of a value of `node`; of a dispatched one they have the expert and slot axes. */
export function placesOf(
  scope: KernelScope,
  node: Node,
  axes: readonly string[] = node.axes,
): Places {
  const { lowering } = scope;
  const length = (axis: string) => lengthOf(scope, axis);
  const route = lowering.dispatched.get(node);
  const expert = lowering.sharded.get(node);
  if (expert !== undefined && axes.includes(expert)) {
    const own = ownLength(scope, expert);
    const count = axes.map(own).reduce((a, b) => mul(a, b), u32(1));
    return {
      count,
      size: sizeOf(lowering, axes),
      at: (index) => ownPlace(scope, atFlat(axes, index, own), expert),
    };
  }
  if (!route) {
    return {
      count: productOf(scope, axes),
      size: sizeOf(lowering, axes),
      at: (index) => atFlat(axes, index, length),
    };
  }
  // The number of rows is known on the device only, so the host's is the most there can be.
  const routing = lowering.routings.get(route)!;
  const rest = restAxes(node, route, axes);
  const width = fixedProduct(lowering, node, rest);
  const rows = load(scope.read(routing.rowCount), u32(0), "u32");
  return {
    count: mul(rows, u32(width)),
    size: { mul: [routing.receiveSize, width] },
    at(index) {
      const row = div(index, u32(width));
      const inner = atFlat(rest, rem(index, u32(width)), length);
      return atRow(scope, inner, { routing, row });
    },
  };
}

/** Lengths of axes on a rank that has the part of its own experts. */
export function ownLength(
  scope: KernelScope,
  expert: string,
): (axis: string) => Expr {
  const { lowering } = scope;
  const counts = expertsOfRanks(lowering.placed, expert)
    .map((ids) => ids.length);
  return (axis) => {
    if (axis !== expert) return lengthOf(scope, axis);
    if (counts.every((n) => n === counts[0])) return u32(counts[0]!);
    const name = `length of ${localName(expert)}`;
    if (!lowering.buffers.has(name)) {
      addBuffer(lowering, {
        name,
        kind: "const",
        dtype: "u32",
        axes: [{ axis: localName(expert), size: 1 }],
        data: { ranks: counts.map((n) => [n]) },
      });
    }
    return load(scope.read(name), u32(0), "u32");
  };
}

/** A place whose expert is counted among those of the rank. */
export function ownPlace(scope: KernelScope, at: At, expert: string): At {
  return {
    get: (axis) =>
      axis === localName(expert)
        ? at.get(expert)
        : axis === expert
        ? globalExpert(scope, expert, at.get(expert))
        : at.get(axis),
  };
}

/** The axes of a dispatched value inside a row. */
export function restAxes(
  node: Node,
  route: Node,
  axes: readonly string[] = node.axes,
): string[] {
  if (!isRouting(route)) return [...axes];
  const { expert, slot } = route.params;
  return axes.filter((axis) => axis !== expert && axis !== slot);
}

/** A grouped row; `expert` is its expert among those of the rank, if known. */
export interface GroupedRow {
  readonly routing: RoutingBuffers;
  readonly row: Expr;
  readonly expert?: Expr;
}

/** The place of `inner` in a grouped row. */
export function atRow(
  scope: KernelScope,
  inner: At,
  { routing, row, expert }: GroupedRow,
): At {
  const local = () => expert ?? load(scope.read(routing.expertOf), row, "u32");
  return {
    ...inner,
    get(axis) {
      if (axis === ROW) return row;
      if (axis === localName(routing.expert)) return local();
      if (axis === routing.expert) return globalExpert(scope, axis, local());
      return inner.get(axis);
    },
  };
}

/** The global id of an expert of the rank. */
function globalExpert(scope: KernelScope, axis: string, local: Expr): Expr {
  const { lowering } = scope;
  const ranks = expertsOfRanks(lowering.placed, axis);
  if (ranks.every((ids) => ids.every((id, i) => id === i))) return local;
  const name = `ids of ${axis}`;
  if (!lowering.buffers.has(name)) {
    const most = Math.max(1, ...ranks.map((ids) => ids.length));
    addBuffer(lowering, {
      name,
      kind: "const",
      dtype: "u32",
      axes: [{ axis: localName(axis), size: most }],
      data: {
        ranks: ranks.map((ids) =>
          Array.from({ length: most }, (_, i) => ids[i] ?? 0)
        ),
      },
    });
  }
  return load(scope.read(name), local, "u32");
}

/** `at` in one place more: index `i` of `over`, the axis that the rows of `at` lack. */
export function alongRow(
  axes: readonly string[],
  over: string,
  { at, row, i, length }: { at: At; row: Expr; i: Expr; length: Expr },
): At {
  const get = (axis: string) => axis === over ? i : at.get(axis);
  const whole = at.flat?.order.length === axes.length - 1;
  if (!whole || axes.at(-1) !== over) return { get };
  const index = binary("add", binary("mul", row, length), i);
  return { get, flat: { order: axes, index } };
}

/** Run `body` at every place of a value of `node`. */
export function writeAll(
  scope: KernelScope,
  node: Node,
  axes: readonly string[],
  body: (at: At) => readonly Stmt[],
): void {
  const places = placesOf(scope, node, axes);
  const rows = scope.lowering.dispatched.has(node) ? "_rows" : "";
  const kernel = elementwise({
    name: `${verbOf(node)}${rows}`,
    count: places.count,
    bindings: scope.bindings,
    body: (index) => scope.block(() => body(places.at(index))),
  });
  addLaunch(scope.lowering, node, kernel, {
    bindings: scope.buffers,
    workgroups: elementwiseGrid(places.size),
  });
}
