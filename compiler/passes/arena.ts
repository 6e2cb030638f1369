/**
 * Arenas: offsets for buffers with live ranges, so that simultaneously live buffers do not overlap. Greedy by size:
 * largest first, each at the lowest offset that is free during its live range. Live ranges are computed elsewhere.
 */

import { alignedOffset } from "../../spec/layout.ts";

/** A buffer of `bytes` bytes, live from step `first` to step `last` inclusive. */
export interface LiveRange {
  readonly bytes: number;
  readonly first: number;
  readonly last: number;
}

/** Location of a buffer: byte `offset` of an arena, a multiple of `STORAGE_ALIGNMENT`. */
export interface ArenaSlot {
  readonly arena: number;
  readonly offset: number;
}

/** Other orders are tried only if the size order needs more than this multiple of the peak of live bytes. */
const GOOD = 1.01;

/** Number of improvements of an order before the next one is tried. */
const ROUNDS = 16;

/** A live range with aligned bytes, and the keys of orders. */
interface Item extends LiveRange {
  readonly index: number;
  /** The maximum of live bytes over the steps of the live range. */
  readonly pressure: number;
}

/** Slots of all items. */
interface Packing {
  readonly slots: readonly ArenaSlot[];
  /** Bytes of all arenas. */
  readonly bytes: number;
  /** Items that end above the peak of live bytes. */
  readonly above: readonly Item[];
}

type Order = (a: Item, b: Item) => number;

/** Ties keep their order, so that repeated layers have repeated offsets. */
function bySize(a: Item, b: Item): number {
  return b.bytes - a.bytes || a.first - b.first;
}

function byLength(a: Item, b: Item): number {
  return b.last - b.first - (a.last - a.first);
}

function byPressure(a: Item, b: Item): number {
  return b.pressure - a.pressure;
}

/**
 * A slot for each live range, in order. No arena exceeds `limit` bytes, except for a single longer buffer.
 * Deterministic.
 */
export function packArenas(
  ranges: readonly LiveRange[],
  limit: number,
): readonly ArenaSlot[] {
  const items = itemsOf(ranges);
  const atOnce = items.reduce(
    (max, { pressure }) => Math.max(max, pressure),
    0,
  );
  const pack = (order: readonly Item[]) => packInOrder(order, limit, atOnce);
  let best = pack([...items].sort(bySize));
  const orders: Order[] = [
    (a, b) => byPressure(a, b) || bySize(a, b),
    (a, b) => byPressure(a, b) || byLength(a, b) || bySize(a, b),
  ];
  for (const order of orders) {
    const sorted = [...items].sort(order);
    // Items that ended above the peak come first in the next round, by how often they did.
    const blame = items.map(() => 0);
    for (let i = 0; i < ROUNDS && best.bytes > GOOD * atOnce; i++) {
      const packing = pack(sorted);
      if (packing.bytes < best.bytes) best = packing;
      for (const { index } of packing.above) blame[index]!++;
      sorted.sort((a, b) => blame[b.index]! - blame[a.index]! || order(a, b));
    }
  }
  return best.slots;
}

function itemsOf(ranges: readonly LiveRange[]): Item[] {
  const steps = ranges.reduce((n, { last }) => Math.max(n, last + 1), 0);
  const aligned = ranges.map(({ bytes }) => alignedOffset(bytes));
  const live = new Array<number>(steps).fill(0);
  ranges.forEach(({ first, last }, i) => {
    for (let step = first; step <= last; step++) live[step]! += aligned[i]!;
  });
  return ranges.map(({ first, last }, index) => {
    let pressure = 0;
    for (let step = first; step <= last; step++) {
      pressure = Math.max(pressure, live[step]!);
    }
    return { index, first, last, bytes: aligned[index]!, pressure };
  });
}

/** One arena with its items by offset. It uses number arrays, because packing spends its time here. */
class Arena {
  bytes = 0;
  readonly #room: number;
  readonly #starts: number[] = [];
  readonly #ends: number[] = [];
  readonly #first: number[] = [];
  readonly #last: number[] = [];

  /** An arena of at most `room` bytes. */
  constructor(room: number) {
    this.#room = room;
  }

  /** Adds an item at the lowest offset that is free during its live range. Undefined if there is no room. */
  add({ bytes, first, last }: Item): number | undefined {
    const [starts, ends] = [this.#starts, this.#ends];
    const [firsts, lasts] = [this.#first, this.#last];
    let offset = 0;
    for (let i = 0; i < starts.length; i++) {
      if (lasts[i]! < first || firsts[i]! > last) continue;
      if (starts[i]! - offset >= bytes) break;
      if (ends[i]! > offset) offset = ends[i]!;
    }
    const end = offset + bytes;
    if (end > this.#room) return undefined;
    let [low, high] = [0, starts.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (starts[middle]! > offset) high = middle;
      else low = middle + 1;
    }
    starts.splice(low, 0, offset);
    ends.splice(low, 0, end);
    firsts.splice(low, 0, first);
    lasts.splice(low, 0, last);
    this.bytes = Math.max(this.bytes, end);
    return offset;
  }
}

function packInOrder(
  order: readonly Item[],
  limit: number,
  atOnce: number,
): Packing {
  const arenas: Arena[] = [];
  const slots = new Array<ArenaSlot>(order.length);
  for (const item of order) {
    let arena = 0;
    let offset: number | undefined;
    while (offset === undefined) {
      arenas[arena] ??= new Arena(Math.max(limit, item.bytes));
      offset = arenas[arena]!.add(item);
      if (offset === undefined) arena++;
    }
    slots[item.index] = { arena, offset };
  }
  const starts: number[] = [];
  let bytes = 0;
  for (const arena of arenas) {
    starts.push(bytes);
    bytes += arena.bytes;
  }
  const above = order.filter((item) => {
    const { arena, offset } = slots[item.index]!;
    return starts[arena]! + offset + item.bytes > atOnce;
  });
  return { slots, bytes, above };
}
