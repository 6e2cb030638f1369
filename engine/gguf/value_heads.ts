/**
 * The order of value heads of gated delta nets. Checkpoints have the value heads of a key head together; files of
 * Qwen3.5 list the first value head of every key head, then the second ones, and so on.
 */

import { readExactly } from "../../runtime/weights/file_source.ts";
import { type Stored, withRead, withRows } from "./interleaved.ts";

/** Sizes of a gated delta net. */
export interface ValueHeads {
  readonly keyHeads: number;
  readonly valueHeads: number;
  /** Elements of a key head and of a value head. */
  readonly keyDim: number;
  readonly valueDim: number;
}

/**
 * Where value heads are: `heads`: a row each; `rows`: rows of each element; `channels`: as `rows`, after queries and
 * keys; `columns`: columns of each element.
 */
export type Tiled = "heads" | "rows" | "channels" | "columns";

/** Whether a tensor of this shape has the value heads, and the sizes are possible. */
export function hasHeads(
  shape: readonly number[],
  tiled: Tiled,
  { keyHeads, valueHeads, keyDim, valueDim }: ValueHeads,
): boolean {
  const sizes = [keyHeads, valueHeads, keyDim, valueDim];
  if (!sizes.every((size) => Number.isInteger(size) && size > 0)) return false;
  const values = valueHeads * valueDim;
  const needed = {
    heads: valueHeads,
    rows: values,
    channels: 2 * keyHeads * keyDim + values,
    columns: values,
  };
  const found = tiled === "columns" ? shape.at(-1) : shape[0];
  return valueHeads % keyHeads === 0 && found === needed[tiled];
}

/** The number of the head in a file for a head of a checkpoint. */
export function tiledHead(head: number, of: ValueHeads): number {
  const each = of.valueHeads / of.keyHeads;
  return head % each * of.keyHeads + Math.floor(head / each);
}

/** The number of the head in a checkpoint for a head of a file. */
export function groupedHead(head: number, of: ValueHeads): number {
  const each = of.valueHeads / of.keyHeads;
  return head % of.keyHeads * each + Math.floor(head / of.keyHeads);
}

/** Returns a tensor whose value heads are those at `headOf` of a tensor. `unit`: the bytes of a head in a row. */
export function withHeads<T extends Stored>(
  tensor: T,
  headOf: (head: number, of: ValueHeads) => number,
  { tiled, heads, unit }: {
    readonly tiled: Tiled;
    readonly heads: ValueHeads;
    readonly unit: number;
  },
): T {
  if (tiled === "columns") {
    const order = Array.from(
      { length: heads.valueHeads },
      (_, head) => headOf(head, heads),
    );
    return withUnits(tensor, order, unit);
  }
  const width = tiled === "heads" ? 1 : heads.valueDim;
  const first = tiled === "channels" ? 2 * heads.keyHeads * heads.keyDim : 0;
  return withRows(tensor, (row) => {
    if (row < first) return row;
    const at = row - first;
    const head = headOf(Math.floor(at / width), heads);
    return first + head * width + at % width;
  });
}

/** Returns a matrix whose unit i of each row is unit `order[i]`, of `unit` bytes each. */
function withUnits<T extends Stored>(
  tensor: T,
  order: readonly number[],
  unit: number,
): T {
  const { source, offset } = tensor;
  return withRead(tensor, async ({ begin, end, rowBytes }) => {
    const first = offset + begin * rowBytes;
    const from = await readExactly(source, first, (end - begin) * rowBytes);
    const to = new Uint8Array(from.length);
    for (let row = 0; row < from.length; row += rowBytes) {
      order.forEach((at, i) => {
        const start = row + at * unit;
        to.set(from.subarray(start, start + unit), row + i * unit);
      });
    }
    return to;
  });
}
