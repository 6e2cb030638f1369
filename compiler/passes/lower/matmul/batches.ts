/** Launches of contractions with batch axes and a viewed packed parameter, such as both parts of `kv_b_proj`. */

import { f32 } from "../../../../spec/kernel/build.ts";
import type { Expr, Stmt } from "../../../../spec/kernel/tree.ts";
import { segmentsOf } from "../../../../spec/numerics.ts";
import type { Size } from "../../../../spec/size.ts";
import type { Node, NodeOf } from "../../../graph/graph.ts";
import {
  batchesGrid,
  contractBatches,
} from "../../../kernels/matmul/batches.ts";
import type {
  BatchesOptions,
  BatchesTile,
} from "../../../kernels/matmul/batch_tile.ts";
import {
  amendBuffer,
  fixedProduct,
  type Lowering,
  productOf,
  sizeOf,
  type Storage,
} from "../context.ts";
import { emitValue } from "../emit.ts";
import { writeTarget } from "../epilogue.ts";
import { type At, atFlat, atJoined, flatIndex } from "../indices.ts";
import { joinedPart } from "../joined.ts";
import { KernelScope } from "../scope.ts";
import { storageFor } from "../storage.ts";
import { contractForm, launchContract, launchOthers } from "./contractions.ts";
import { dotShape } from "./dot_shape.ts";
import { forRows } from "./inline_norms.ts";

/** A tile for vectors. */
const TILE: Omit<BatchesTile, "bytes"> = {
  rows: 4,
  columns: 32,
  most: 64,
  fewest: 4,
};

/** Bytes of decoded elements in fast caches. */
const STAGED_BYTES = 32768;

/** A packed parameter under the names of a view, and where it is stored. */
export interface PackedView {
  readonly view: Node;
  readonly storage: Storage & { readonly packed: object };
}

/** The packed parameter that the right operand of a dot is a slice of, or a view. Undefined: it is none. */
export function packedRight(
  { values }: Lowering,
  node: NodeOf<"dot">,
): PackedView | undefined {
  let view = node.inputs[1]!;
  while (!values.storages.has(view) && view.primitive === "slice") {
    view = view.inputs[0]!;
  }
  const storage = values.storages.get(view);
  return storage?.packed &&
    { view, storage: { ...storage, packed: storage.packed } };
}

/** Lowers a dot whose right operand is packed. `joined`: the concatenation that contains it. */
export function lowerBatches(
  lowering: Lowering,
  node: NodeOf<"dot">,
  { packed: { view, storage: right }, joined }: {
    readonly packed: PackedView;
    readonly joined: NodeOf<"concat"> | undefined;
  },
): void {
  const { tuning: { bytes }, maxShared } = lowering.options;
  const target = joined ?? node;
  const storage = storageFor(lowering, target);
  const scope = new KernelScope(lowering);
  const part = joined && joinedPart(scope, joined, node);
  const { batch, over, rows, columns } = dotShape(node);
  const [k, width, batches] = [over, columns, batch].map((axes) =>
    fixedProduct(lowering, node, axes)
  ) as [number, number, number];
  const { stored, along, scales, offsets, factors } = right.packed;
  const [left, weight] = node.inputs as [Node, Node];
  const isAlongK = over.join() === along;
  const outer = isAlongK ? columns : over;
  const elementAt = (b: Expr, axes: readonly string[], index: Expr) =>
    atJoined(axes, atFlat(scope, axes, index), atFlat(scope, batch, b));
  const others = right.axes.filter((axis) => axis !== along);
  /** The number of a stored row, of an element of it. */
  const rowOf = (at: At) => {
    let row: Expr | undefined;
    emitValue(
      scope,
      weight,
      at,
      new Map([[view, (there: At) => {
        row = flatIndex(scope, others, { get: there.get });
        return f32(0);
      }]]),
    );
    return scope.bindValue(row!);
  };
  const separate = scales === right.buffer ? {} : {
    scales: scope.read(scales),
    ...offsets ? { offsets: scope.read(offsets) } : {},
    ...factors ? { factors: scope.read(factors) } : {},
  };
  const options: BatchesOptions = {
    name: `contract_${over.join("_")}`,
    bindings: scope.bindings,
    k,
    segments: node.params.segments ?? segmentsOf(k),
    columns: width,
    rows: productOf(scope, rows),
    weight: { binding: scope.read(right.buffer), stored, ...separate },
    along: isAlongK ? "k" : "columns",
    tile: { ...TILE, bytes: Math.min(STAGED_BYTES, maxShared) },
    arithmetic: bytes,
    left: (at, use) =>
      scope.block((): Stmt[] => {
        const inner = elementAt(at.batch, rows, at.row);
        const all = atJoined(over, atFlat(scope, over, at.k), inner);
        return [use(emitValue(scope, left, all))];
      }),
    weightRow: (at, use) =>
      scope.block(() => use(rowOf(elementAt(at.batch, outer, at.outer)))),
    epilogue: (at, sum) => {
      const inner = elementAt(at.batch, columns, at.column);
      const of = atJoined(rows, atFlat(scope, rows, at.row), inner);
      return writeTarget(
        { scope, node: target, storage },
        part ? part.around(of) : of,
        [sum],
      );
    },
  };
  const kernel = contractBatches(options);
  const size = sizeOf(lowering, rows);
  const form = contractForm(lowering, node);
  const limited = (size: Size) =>
    form ? forRows(size, { rows: form.by, most: form.above }).few : size;
  scope.launch(
    target,
    kernel,
    batchesGrid(options, { batches, rows: limited(size) }),
  );
  if (joined) {
    launchOthers(lowering, node, {
      limited,
      target: { node: target, storage },
      joined,
    });
  }
  const first = joined ? 2 : 1;
  const more = form
    ? launchContract(lowering, node, {
      form,
      target: { node: target, storage },
      joined,
    })
    : 0;
  if (first + more > 1) {
    amendBuffer(lowering, storage.buffer, { writers: first + more });
  }
}
