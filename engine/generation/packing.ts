/** Converts padded batches to packed tokens and back. */

import type { HostTensor } from "../../runtime/mod.ts";
import { DataError } from "../../spec/errors.ts";
import type { PageTable } from "./pages.ts";

/** Integers of a batch: `[batch, seq]`, row-major. */
export interface Batch {
  readonly rows: number;
  readonly columns: number;
  readonly ids: ArrayLike<number>;
  /** 1 = real token. Default: all are real. */
  readonly mask?: ArrayLike<number>;
}

/** Real tokens of a batch, sequence after sequence. */
export interface PackedTokens {
  readonly ids: Int32Array;
  /** Row of the batch. */
  readonly sequence: Int32Array;
  /** Position in its sequence, from 0. */
  readonly position: Int32Array;
  /** Index in the padded batch. */
  readonly cell: Int32Array;
}

/** Packs the real tokens of a right-padded batch. */
export function packBatch(batch: Batch): PackedTokens {
  const cells: number[] = [];
  for (let row = 0; row < batch.rows; row++) {
    let ended = false;
    for (let column = 0; column < batch.columns; column++) {
      const cell = row * batch.columns + column;
      const real = batch.mask ? batch.mask[cell]! : 1;
      if (real !== 0 && real !== 1) {
        throw new DataError(
          `Cannot use 'attention_mask': entry [${row}, ${column}] is ${real}. Give 1 for a token and 0 for padding`,
        );
      }
      if (real === 1 && ended) {
        throw new DataError(
          `Cannot use 'attention_mask': row ${row} has a token after padding, in column ${column}. Pad on the right`,
        );
      }
      ended = real === 0;
      if (real === 1) cells.push(cell);
    }
  }
  return {
    ids: Int32Array.from(cells, (cell) => batch.ids[cell]!),
    sequence: Int32Array.from(
      cells,
      (cell) => Math.floor(cell / batch.columns),
    ),
    position: Int32Array.from(cells, (cell) => cell % batch.columns),
    cell: Int32Array.from(cells),
  };
}

/** Packs prompts into one token list: sequence `i` is `prompts[i]`. */
export function packPrompts(
  prompts: readonly (readonly number[])[],
): PackedTokens {
  const columns = Math.max(0, ...prompts.map((prompt) => prompt.length));
  const ids = new Int32Array(prompts.length * columns);
  const mask = new Int32Array(prompts.length * columns);
  prompts.forEach((prompt, row) =>
    prompt.forEach((id, column) => {
      ids[row * columns + column] = id;
      mask[row * columns + column] = 1;
    })
  );
  return packBatch({ rows: prompts.length, columns, ids, mask });
}

/** A token and its place in the caches. */
export interface Taken {
  readonly slot: number;
  readonly id: number;
  /** Its position. */
  readonly at: number;
}

/** Packs the tokens. */
export function packTaken(taken: readonly Taken[]): PackedTokens {
  return {
    ids: Int32Array.from(taken, ({ id }) => id),
    sequence: Int32Array.from(taken, ({ slot }) => slot),
    position: Int32Array.from(taken, ({ at }) => at),
    cell: new Int32Array(taken.length),
  };
}

/** Packs consecutive tokens of sequences: those of `slot` have the positions from `first` on. */
export function packTokens(
  parts: readonly {
    readonly slot: number;
    readonly first: number;
    readonly ids: readonly number[];
  }[],
): PackedTokens {
  return packTaken(
    parts.flatMap(({ slot, first, ids }) =>
      ids.map((id, i) => ({ slot, id, at: first + i }))
    ),
  );
}

/** Tokens `from` to `to` of a packed list. */
export function slicePacked(
  packed: PackedTokens,
  from: number,
  to: number,
): PackedTokens {
  return {
    ids: packed.ids.subarray(from, to),
    sequence: packed.sequence.subarray(from, to),
    position: packed.position.subarray(from, to),
    cell: packed.cell.subarray(from, to),
  };
}

/** Copies rows of `width` values to the indices of their tokens in the padded batch. */
export function unpackRows<T extends Float32Array | Int32Array | Uint32Array>(
  padded: T,
  rows: T,
  packed: { readonly cell: Int32Array; readonly width: number },
): void {
  packed.cell.forEach((cell, row) => {
    padded.set(
      rows.subarray(row * packed.width, (row + 1) * packed.width),
      cell * packed.width,
    );
  });
}

/** Rejects a token id outside the vocabulary. */
export function checkTokens(
  ids: ArrayLike<number>,
  vocabulary: number,
  what: (index: number) => string,
): void {
  for (let i = 0; i < ids.length; i++) {
    const id = ids[i]!;
    if (!(Number.isInteger(id) && id >= 0 && id < vocabulary)) {
      throw new DataError(
        `Cannot use token ${id} (${what(i)}): the vocabulary has ids 0 to ${
          vocabulary - 1
        }. Use the tokenizer of this checkpoint`,
      );
    }
  }
}

/** The inputs of a program with these tokens. */
export function tokenInputs(
  { ids, sequence, position }: PackedTokens,
): { readonly [name in "ids" | "sequence" | "position"]: HostTensor } {
  return {
    ids: integers(ids),
    sequence: integers(sequence),
    position: integers(position),
  };
}

/** A one-dimensional tensor of integers. */
export function integers(data: Int32Array): HostTensor {
  return { dtype: "i32", shape: [data.length], data };
}

/**
 * Allocates the pages of all tokens of a step, and releases pages that are visible to none of them. Throws DataError if
 * there are too few.
 */
export function assignTokens(
  pages: PageTable,
  { ids, sequence, position }: Omit<PackedTokens, "cell">,
): void {
  pages.advanceAll({ sequence, position });
  for (let i = 0; i < ids.length; i++) {
    if (pages.assign(sequence[i]!, position[i]!, ids[i]!)) continue;
    throw new DataError(
      `Cannot run position ${position[i]!} of sequence ${sequence[
        i
      ]!}: other sequences have all pages. Run fewer at a time, or compile for more pages`,
    );
  }
}
