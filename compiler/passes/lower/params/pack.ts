/** Packing: rounds an f32 value to 16 bits in the layout of its parameter: two elements to a word, padded rows. */

import { isHalf } from "../../../../spec/dtype.ts";
import { invariant } from "../../../../spec/errors.ts";
import {
  add,
  binary,
  div,
  lt,
  mul,
  packBits,
  select,
  store,
  sub,
  u32,
} from "../../../../spec/kernel/build.ts";
import type { Expr } from "../../../../spec/kernel/tree.ts";
import { maxOverRanks } from "../../../../spec/plan/plan.ts";
import type { Node } from "../../../graph/graph.ts";
import {
  elementwise,
  elementwiseGrid,
} from "../../../../spec/kernel/elementwise.ts";
import {
  addBuffer,
  freshName,
  lengthOf,
  type Lowering,
  productOf,
  type Storage,
} from "../context.ts";
import { emitValue } from "../emit.ts";
import { indexSpaceOf } from "../index_space.ts";
import { KernelScope } from "../scope.ts";

/** The value of a stored node in the layout of `like`, in a new buffer. */
export function packedStorage(
  lowering: Lowering,
  node: Node,
  like: Storage,
): Storage {
  const { dtype, axes, rowStride } = like;
  invariant(isHalf(dtype), "only 16-bit floats are packed");
  const { axes: bufferAxes, bytes } = lowering.draft.buffers.get(like.buffer)!;
  const padded = rowStride === undefined ? {} : { rowStride };
  const buffer = addBuffer(lowering, {
    name: freshName(lowering, "rounded"),
    kind: "scratch",
    dtype,
    axes: bufferAxes,
    ...padded,
  });
  const scope = new KernelScope(lowering);
  const space = indexSpaceOf(scope, node, axes);
  const count = rowStride === undefined
    ? space.count
    : mul(productOf(scope, axes.slice(0, -1)), u32(rowStride));
  /** Maps an element of the buffer to an element of the value, if there is one. */
  const unpadded = (element: Expr): { inside: Expr; index: Expr } => {
    if (rowStride === undefined) {
      return { inside: lt(element, space.count), index: element };
    }
    const row = scope.bindValue(div(element, u32(rowStride)));
    const column = scope.bindValue(sub(element, mul(row, u32(rowStride))));
    const width = lengthOf(scope, axes.at(-1)!);
    return { inside: lt(column, width), index: add(mul(row, width), column) };
  };
  /** The bits of an element of the buffer; 0 for padding. */
  const bitsAt = (element: Expr): Expr => {
    const { inside, index } = unpadded(element);
    const there = scope.bindValue(select(inside, index, u32(0)));
    const value = scope.bindValue(emitValue(scope, node, space.at(there)));
    return select(inside, packBits(dtype, value), u32(0));
  };
  const kernel = elementwise({
    name: `round_to_${dtype}`,
    count: div(add(count, u32(1)), u32(2)),
    bindings: scope.bindings,
    body: (word) =>
      scope.block(() => {
        const low = bitsAt(mul(word, u32(2)));
        const high = bitsAt(add(mul(word, u32(2)), u32(1)));
        const both = binary("or", low, binary("shl", high, u32(16)));
        return [store(scope.write(buffer), word, both)];
      }),
  });
  scope.launch(node, kernel, elementwiseGrid(maxOverRanks(bytes) / 4));
  return { buffer, dtype, axes, ...padded };
}
