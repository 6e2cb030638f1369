/** The places of a value: all of a tensor, or the dispatched rows that a rank received. */

import {
  add,
  binary,
  div,
  load,
  mul,
  rem,
  u32,
} from "../../../spec/kernel/build.ts";
import type { Expr, Stmt } from "../../../spec/kernel/tree.ts";
import { dataPerRank } from "../../../spec/per_rank.ts";
import type { Size } from "../../../spec/size.ts";
import { isRouting, type Node } from "../../graph/graph.ts";
import { elementwise, elementwiseGrid } from "../../kernels/elementwise.ts";
import { type At, atFlat, localName, ROW } from "./at.ts";
import {
  addBuffer,
  addLaunch,
  fixedProduct,
  lengthOf,
  type Lowering,
  productOf,
  type RoutingBuffers,
  sizeOf,
  verbOf,
} from "./context.ts";
import { expertsOfRanks, ownAxes } from "./params.ts";
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
  const own = ownAxes(lowering, node).filter((axis) => axes.includes(axis));
  if (own.length > 0) {
    const ownLength = lengthsOn(scope, own);
    const most = axes.map((axis) =>
      own.includes(axis) ? mostOf(lowering, axis) : sizeOf(lowering, [axis])
    );
    return {
      count: axes.map(ownLength).reduce((a, b) => mul(a, b), u32(1)),
      size: most.every((n) => typeof n === "number")
        ? most.reduce((a, b) => a * b, 1)
        : { mul: most },
      at: (index) => ownPlace(scope, axes, index, own),
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

/** The most items of an axis with a table that a rank has. */
export function mostOf({ placed }: Lowering, axis: string): number {
  return Math.max(...expertsOfRanks(placed, axis).map((ids) => ids.length));
}

/** Lengths of axes on a rank that has a part of the axes `own`. */
export function lengthsOn(
  scope: KernelScope,
  own: readonly string[],
): (axis: string) => Expr {
  const { lowering } = scope;
  return (axis) => {
    if (!own.includes(axis)) return lengthOf(scope, axis);
    const counts = expertsOfRanks(lowering.placed, axis)
      .map((ids) => ids.length);
    return counts.every((n) => n === counts[0])
      ? u32(counts[0]!)
      : ownNumber(scope, axis, "length");
  };
}

/** The length of the rank's part of an axis with a table, or the first item of it: in one buffer for all such axes. */
function ownNumber(
  scope: KernelScope,
  axis: string,
  what: "length" | "start",
): Expr {
  const { placed } = scope.lowering;
  const axes = Object.keys(placed.axes).filter((name) =>
    placed.axes[name]!.table
  );
  const parts = axes.map((name) => expertsOfRanks(placed, name));
  const name = addTable(scope, OWN_ITEMS, {
    axis: "length and start",
    data: Array.from(
      { length: placed.ranks },
      (_, rank) =>
        parts.flatMap((ids) => [ids[rank]!.length, ids[rank]![0] ?? 0]),
    ),
  });
  const slot = 2 * axes.indexOf(axis) + (what === "length" ? 0 : 1);
  return load(scope.read(name), u32(slot), "u32");
}

const OWN_ITEMS = "own items";

/** A constant buffer with a list for each rank, made once. Returns its name. */
function addTable(
  { lowering }: KernelScope,
  name: string,
  { axis, data }: {
    readonly axis: string;
    readonly data: readonly (readonly number[])[];
  },
): string {
  if (lowering.buffers.has(name)) return name;
  return addBuffer(lowering, {
    ...{ name, kind: "const", dtype: "u32" },
    axes: [{ axis, size: data[0]!.length }],
    data: dataPerRank(data),
  });
}

/** The place with row-major index `index` over `axes`, of which the rank has a part of the axes `own`. */
export function ownPlace(
  scope: KernelScope,
  axes: readonly string[],
  index: Expr,
  own: readonly string[],
): At {
  const length = lengthsOn(scope, own);
  const names = axes.map((axis) => own.includes(axis) ? localName(axis) : axis);
  const at = atFlat(
    names,
    index,
    (name) => length(axes[names.indexOf(name)]!),
  );
  return {
    ...at,
    get: (axis) =>
      own.includes(axis)
        ? globalItem(scope, axis, at.get(localName(axis)))
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
      if (axis === routing.expert) return globalItem(scope, axis, local());
      return inner.get(axis);
    },
  };
}

/** The global id of an expert of the rank, or of its item of another axis with a table. */
function globalItem(scope: KernelScope, axis: string, local: Expr): Expr {
  const { placed } = scope.lowering;
  const ranks = expertsOfRanks(placed, axis);
  if (ranks.every((ids) => ids.every((id, i) => id === i))) return local;
  if (!placed.expertAxes.has(axis)) {
    // Axes that updates are dealt by lie in blocks.
    return add(ownNumber(scope, axis, "start"), local);
  }
  const most = Math.max(1, ...ranks.map((ids) => ids.length));
  const name = addTable(scope, `ids of ${axis}`, {
    axis: localName(axis),
    data: ranks.map((ids) =>
      Array.from({ length: most }, (_, i) => ids[i] ?? 0)
    ),
  });
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
