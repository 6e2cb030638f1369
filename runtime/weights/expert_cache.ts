/** A cache of experts. The least frequently used ones are evicted; older uses count less. */

/** Number of launches after which a use counts half. */
export const HALF_LIFE = 16;

/** Assigns slots to experts of equal size, by number. */
export class ExpertCache {
  readonly slots: number;
  /** Logarithm of the decayed uses of each expert, relative to step 0. */
  readonly #ranks = new Map<number, number>();
  /** The slot of each expert in memory. */
  readonly #resident = new Map<number, number>();
  readonly #free: number[];

  constructor(slots: number) {
    this.slots = slots;
    this.#free = Array.from({ length: slots }, (_, i) => slots - 1 - i);
  }

  /** Counts a use of an expert in a step. */
  use(expert: number, step: number): void {
    const now = step / HALF_LIFE;
    const before = this.#ranks.get(expert) ?? -Infinity;
    this.#ranks.set(expert, Math.log2(1 + 2 ** (before - now)) + now);
  }

  /** The slot of an expert. Undefined if it is not in memory. */
  slot(expert: number): number | undefined {
    return this.#resident.get(expert);
  }

  /**
   * Assigns a slot to an expert that is not in memory: a free one, or that of the least used expert outside of
   * `wanted`. Undefined if there is none.
   */
  assign(expert: number, wanted: ReadonlySet<number>): number | undefined {
    const slot = this.#free.pop() ?? this.#evict(wanted);
    if (slot !== undefined) this.#resident.set(expert, slot);
    return slot;
  }

  /** Forgets an expert whose bytes changed: its uses, and its slot, which is free. */
  forget(expert: number): void {
    const slot = this.#resident.get(expert);
    if (slot !== undefined) this.#free.push(slot);
    this.#resident.delete(expert);
    this.#ranks.delete(expert);
  }

  #evict(wanted: ReadonlySet<number>): number | undefined {
    let [found, min] = [-1, Infinity];
    for (const expert of this.#resident.keys()) {
      const rank = this.#ranks.get(expert)!;
      if (rank < min && !wanted.has(expert)) [found, min] = [expert, rank];
    }
    const slot = this.#resident.get(found);
    this.#resident.delete(found);
    return slot;
  }
}
