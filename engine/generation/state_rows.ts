/**
 * Rows of recurrent states and their snapshots. A snapshot is the state after the last position of a block: the row
 * that a sequence has written becomes the snapshot, and the sequence continues in another row. Nothing is copied. In
 * the same way, a sequence holds its state while drafted tokens are verified.
 */

import type { HostTensor } from "../../runtime/mod.ts";

/** A block of positions that may have a snapshot. */
export interface Snapshotted {
  /** The block before it. */
  readonly before: Snapshotted | undefined;
  /** The row of the snapshot. */
  row?: number;
  /** The sequence that will take the snapshot. */
  takenBy?: number;
}

/** The state of a sequence. */
interface State {
  /** The row that the sequence writes. */
  writeRow: number;
  /** The row with its state. */
  from: number;
  /** Number of positions in its state. */
  positions: number;
  /** An earlier state that it can return to. */
  held?: { readonly row: number; readonly positions: number } | undefined;
}

/** The rows of one group rank. */
interface Pool {
  readonly free: number[];
  /** Blocks with a snapshot, oldest first. */
  readonly blocks: Set<Snapshotted>;
}

/** The rows of all sequences. */
export class StateRows {
  readonly #owners: readonly number[];
  readonly #states: readonly State[];
  readonly #pools: readonly Pool[];

  /**
   * @param count rows per rank: those of its sequences, and those of snapshots
   * @param owners for each sequence, its group rank
   */
  constructor(count: number, owners: readonly number[]) {
    this.#owners = owners;
    this.#pools = Array.from({ length: Math.max(...owners) + 1 }, () => ({
      free: Array.from({ length: count }, (_, i) => count - 1 - i),
      blocks: new Set<Snapshotted>(),
    }));
    this.#states = owners.map((owner) => {
      const writeRow = this.#pools[owner]!.free.pop()!;
      return { writeRow, from: writeRow, positions: 0 };
    });
  }

  /** Number of positions in the state of a sequence. */
  positions(sequence: number): number {
    return this.#states[sequence]!.positions;
  }

  /** The rows to read and to write: i32 [sequence, 2]. */
  tensor(): HostTensor {
    const data = Int32Array.from(
      this.#states.flatMap(({ from, writeRow }) => [from, writeRow]),
    );
    return { dtype: "i32", shape: [this.#states.length, 2], data };
  }

  /** Records that a step runs these tokens. */
  ran(sequence: Int32Array, position: Int32Array): void {
    sequence.forEach((s, i) => {
      const state = this.#states[s]!;
      state.from = state.writeRow;
      state.positions = position[i]! + 1;
    });
  }

  /**
   * Continues a sequence from the held state or the snapshot after a number of positions; without positions, from its
   * start.
   */
  resume(sequence: number, positions: number, block?: Snapshotted): void {
    const state = this.#states[sequence]!;
    const isHeld = positions > 0 && state.held?.positions === positions;
    if (!isHeld) this.#release(sequence);
    state.from = isHeld ? state.held!.row : block?.row ?? state.writeRow;
    state.positions = positions;
  }

  /**
   * Holds the state of a sequence, which then writes another row. Returns false if there is no free row, or if the
   * state is a snapshot.
   */
  hold(sequence: number): boolean {
    const state = this.#states[sequence]!;
    if (state.from !== state.writeRow) return false;
    this.#release(sequence);
    const row = this.#take(sequence);
    if (row === undefined) return false;
    state.held = { row: state.writeRow, positions: state.positions };
    state.writeRow = row;
    return true;
  }

  /** Number of positions in the held state of a sequence; 0 without one. */
  held(sequence: number): number {
    return this.#states[sequence]!.held?.positions ?? 0;
  }

  /** Frees the held state of a sequence. */
  #release(sequence: number): void {
    const state = this.#states[sequence]!;
    if (!state.held) return;
    this.#pools[this.#owners[sequence]!]!.free.push(state.held.row);
    state.held = undefined;
  }

  /** A free row of the rank of a sequence, perhaps that of an evicted snapshot. */
  #take(sequence: number): number | undefined {
    const pool = this.#pools[this.#owners[sequence]!]!;
    if (pool.free.length === 0) this.#evict(pool);
    return pool.free.pop();
  }

  /** Makes the state of a sequence the snapshot of a block. Without a free row, evicts one, or takes no snapshot. */
  take(sequence: number, block: Snapshotted): void {
    delete block.takenBy;
    const state = this.#states[sequence]!;
    const row = this.#take(sequence);
    if (row === undefined) return;
    block.row = state.writeRow;
    this.#pools[this.#owners[sequence]!]!.blocks.add(block);
    state.writeRow = row;
  }

  /** Frees the snapshot of a block on the rank of a sequence. */
  free(sequence: number, block: Snapshotted): void {
    release(this.#pools[this.#owners[sequence]!]!, block);
  }

  /** Frees the snapshot that is recomputed from the one before with the fewest blocks; of equal ones, the oldest. */
  #evict(pool: Pool): void {
    const read = new Set(this.#states.map(({ from }) => from));
    let best: Snapshotted | undefined;
    for (const block of pool.blocks) {
      if (read.has(block.row!)) continue;
      if (!best || blocksSince(block) < blocksSince(best)) best = block;
    }
    if (best) release(pool, best);
  }
}

/** Number of blocks from the previous snapshot to that of a block. */
function blocksSince({ before }: Snapshotted): number {
  let count = 1;
  for (; before && before.row === undefined; before = before.before) count++;
  return count;
}

function release({ free, blocks }: Pool, block: Snapshotted): void {
  if (block.row === undefined) return;
  free.push(block.row);
  blocks.delete(block);
  delete block.row;
}
