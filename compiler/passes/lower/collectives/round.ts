/** Rounding of rows to the format of an exchange, and rows in that format. */

import { storedDType } from "../../../../spec/dtype.ts";
import { elementwiseGrid } from "../../../../spec/kernel/elementwise.ts";
import {
  add,
  div,
  load,
  mul,
  rem,
  store,
  u32,
} from "../../../../spec/kernel/build.ts";
import type { Expr } from "../../../../spec/kernel/tree.ts";
import type { Size } from "../../../../spec/size.ts";
import { wireWords } from "../../../../spec/wire.ts";
import type { Node, NodeOf } from "../../../graph/graph.ts";
import {
  decodeRows,
  encodeRows,
  roundRows,
  type WireRows,
  wireUnits,
} from "../../../kernels/wire.ts";
import {
  addScratch,
  type DraftAxis,
  fixedProduct,
  type Lowering,
  type Storage,
} from "../context.ts";
import { loadFrom, storeTo } from "../emit.ts";
import type { GroupedRows } from "../routing/group.ts";
import { alongRow, indexSpaceOf } from "../index_space.ts";
import type { At } from "../indices.ts";
import { KernelScope } from "../scope.ts";
import { storageFor } from "../storage.ts";

/** Words, dtype and axes of the rows of `node` in an exchange, and the format of its operand, if it is encoded. */
export function sentRows(lowering: Lowering, node: Node, operand: Node): {
  readonly words: number;
  readonly dtype: Storage["dtype"];
  readonly axes: readonly DraftAxis[];
  readonly wire?: WireRows;
} {
  const rest = node.axes.slice(2);
  const wire = lowering.values.storages.get(operand)?.wire;
  if (!wire) {
    const dtype = storedDType(node.dtype);
    return { words: fixedProduct(lowering, node, rest), dtype, axes: rest };
  }
  const outer = rest.slice(0, -1);
  const words = wireWords(wire.format, wire.length);
  return {
    words: fixedProduct(lowering, node, outer) * words,
    dtype: "u32",
    axes: [...outer, wordsAxis(wire)],
    wire,
  };
}

function wordsAxis({ format, length }: WireRows): DraftAxis {
  return { axis: `word of ${format}`, size: wireWords(format, length) };
}

/** Rounds rows. If they are encoded, they are stored at the offsets from which they are sent. */
export function lowerRound(lowering: Lowering, node: NodeOf<"round">): void {
  const [x] = node.inputs as [Node];
  const { over, format, encoded } = node.params;
  const length = fixedProduct(lowering, node as Node, [over]);
  const scope = new KernelScope(lowering);
  const rows = x.primitive === "localCombine"
    ? summedRows(scope, x, length)
    : valueRows(scope, node, length);
  const options = {
    name: `${encoded ? "encode" : "round"}_${format}_${length}`,
    format,
    length,
    rows: rows.count,
    bindings: scope.bindings,
    load: rows.load,
  };
  const grid = elementwiseGrid({ mul: [rows.size, wireUnits(options)] });
  if (!encoded) {
    const storage = storageFor(lowering, node as Node);
    const kernel = roundRows({
      ...options,
      store: (row, i, value) => [
        storeTo(scope, storage, rows.at!(row, i), value),
      ],
    });
    return scope.launch(node as Node, kernel, grid);
  }
  const wire = { format, length };
  const axes = [...rows.axes, wordsAxis(wire)];
  const buffer = addScratch(lowering, "encoded", "u32", axes);
  const { rowTo } = rows;
  const kernel = encodeRows({ ...options, to: scope.write(buffer), rowTo });
  scope.launch(node as Node, kernel, grid);
  lowering.values.storages.set(node as Node, {
    buffer,
    dtype: "u32",
    axes: node.axes,
    wire,
  });
}

/** Rows of a value along its last axis. */
interface Rows {
  readonly count: Expr;
  readonly size: Size;
  /** The index of element `i` of a row of the value. Absent: it is not stored unencoded. */
  at?(row: Expr, i: Expr): At;
  /** The operand there. */
  load(row: Expr, i: Expr): Expr;
  /** Axes of the encoded rows, and the encoded row of a row. */
  readonly axes: readonly DraftAxis[];
  rowTo(row: Expr): Expr;
}

/** Rows of tokens, or of a dispatch: these are encoded at the offsets of received rows. */
function valueRows(
  scope: KernelScope,
  node: NodeOf<"round">,
  length: number,
): Rows {
  const { lowering } = scope;
  const { over } = node.params;
  const source = lowering.values.storages.get(node.inputs[0]!)!;
  const outer = node.axes.filter((axis) => axis !== over);
  const space = indexSpaceOf(scope, node as Node, outer);
  const at = (row: Expr, i: Expr) =>
    alongRow(node.axes, over, {
      at: space.at(row),
      row,
      i,
      length: u32(length),
    });
  const group = lowering.model.dispatched.get(node as Node);
  const grouped = group && lowering.values.groups.get(group)!;
  const rest = outer.slice(2);
  return {
    count: space.count,
    size: space.size,
    at,
    load: (row, i) => loadFrom(scope, source, at(row, i)),
    axes: grouped
      ? [
        { axis: grouped.axis, size: grouped.received.bound, dynamic: true },
        ...rest,
      ]
      : outer,
    rowTo: (row) => {
      const width = fixedProduct(lowering, node as Node, rest);
      return rowThrough(scope, row, { through: grouped?.rowOf, width });
    },
  };
}

/** The pre-summed rows of received tokens. */
function summedRows(
  scope: KernelScope,
  sums: NodeOf<"localCombine">,
  length: number,
): Rows {
  const { lowering } = scope;
  const { buffer } = lowering.values.storages.get(sums as Node)!;
  const { received, rowCount } = lowering.values.groups.get(sums.inputs[1]!)!;
  const [expert, slot, ...rest] = sums.axes;
  const outer = rest.slice(0, -1);
  const width = fixedProduct(lowering, sums as Node, outer);
  return {
    count: mul(load(scope.read(rowCount), u32(1), "u32"), u32(width)),
    size: { mul: [received.tokenSize, width] },
    load: (row, i) => load(scope.read(buffer), add(mul(row, u32(length)), i)),
    axes: [
      { axis: `${expert} ${slot}`, size: received.tokenBound, dynamic: true },
      ...outer,
    ],
    rowTo: (row) => row,
  };
}

/** Decodes received rows in the order of experts. `through`: the received row of each. */
export function lowerDecoded(
  lowering: Lowering,
  node: NodeOf<"received">,
  { rows, through, found: { buffer: from, axes, wire } }: {
    readonly rows: GroupedRows;
    readonly through: string | undefined;
    readonly found: Storage & { readonly wire: WireRows };
  },
): void {
  const scope = new KernelScope(lowering);
  const width = fixedProduct(lowering, node as Node, axes.slice(0, -1));
  const count = load(scope.read(rows.rowCount), u32(0), "u32");
  const buffer = addScratch(lowering, "decoded", "f32", [
    { axis: rows.axis, size: rows.received.bound, dynamic: true },
    ...axes,
  ]);
  const kernel = decodeRows({
    name: `decode_${wire.format}_${wire.length}`,
    ...wire,
    rows: mul(count, u32(width)),
    bindings: scope.bindings,
    from: scope.read(from),
    rowFrom: (row) => rowThrough(scope, row, { through, width }),
    store: (i, value) => [store(scope.write(buffer), i, value)],
  });
  const size = { mul: [rows.received.size, width * wire.length] };
  scope.launch(node as Node, kernel, elementwiseGrid(size));
  lowering.values.storages.set(node as Node, {
    buffer,
    dtype: "f32",
    axes,
    rows: { rows },
  });
}

/** Maps a row of `width` parts per dispatched row through a list of dispatched rows, if there is one. */
function rowThrough(
  scope: KernelScope,
  row: Expr,
  { through, width }: {
    readonly through: string | undefined;
    readonly width: number;
  },
): Expr {
  if (through === undefined) return row;
  const mapped = load(scope.read(through), div(row, u32(width)), "u32");
  return add(mul(mapped, u32(width)), rem(row, u32(width)));
}
