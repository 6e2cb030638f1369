/**
 * Loops for compilers to unroll. Words of rows that the lanes load apart are transposed some iterations at a time, in
 * tiles.
 */

import type { Expr } from "../../spec/kernel/tree.ts";
import { someExpression, walkExpressions } from "../../spec/kernel/walk.ts";
import type { Loop } from "./accesses.ts";
import { spanOf } from "./analyze.ts";
import { addRound, byteSums } from "./byte_rounds.ts";
import {
  type Ahead,
  allOf,
  get,
  type Local,
  newLocal,
  u,
  type Value,
  word,
} from "./ir.ts";
import {
  advance,
  type Bounds,
  forget,
  lastOf,
  type Pointer,
  pointLoads,
  setPointer,
  within,
} from "./loop_pointers.ts";
import type { PointerGroup } from "./pointers.ts";
import { laterRows, LINE, prefetchRows } from "./prefetch.ts";
import { rarely } from "./ranges.ts";
import type { Statements } from "./statement.ts";

/** Iterations that a compiler unrolls. */
const UNROLL = 4;

/** Maximum expressions of all iterations of a tile that a compiler unrolls. */
const MAX_UNROLLED = 1500;

/** Maximum bytes between the loads of lanes that are one stream: a block of 32 values. */
export const STREAM_APART = 2 * LINE;

/**
 * Maximum words of a stream that are transposed at once by vectors of 8 lanes. Halves of vectors are joined by loads
 * instead of shuffles, and each line is prefetched several times: processors drop some prefetches.
 */
const STREAM_WORDS = 4;

/** Minimum bytes of a row of blocks. Lanes that load bytes at a smaller distance read adjacent blocks of one row. */
const MIN_ROW = 256;

/** Maximum bytes between rows that a repeated phase loads as one stream, such as the keys of a head. */
const MAX_NEAR = 1024;

/** Numbers of words per lane that can be transposed at once. */
export function tileWidths(lanes: number): readonly number[] {
  return [lanes, lanes / 2, lanes / 4].filter((words) => words >= 4);
}

/**
 * Iterations of a loop whose loads are transposed at once, at most `max`. Undefined if its length does not allow it.
 */
export function tiledWords(
  s: Loop,
  { x }: Statements,
  max = Infinity,
): number | undefined {
  return tileWidths(x.shapes.lanes).find((words) =>
    words <= max && spanOf(s) % words === 0
  );
}

/** A loop with pointers that are in bounds. */
interface TiledLoop {
  readonly s: Loop;
  readonly on: Statements;
  readonly bounds: Bounds;
  readonly groups: readonly PointerGroup[];
  /** The pointers of the groups. */
  readonly pointers: readonly Pointer[];
  /** Groups whose loads follow the iterations. */
  readonly rows: readonly Row[];
  /** Groups whose words are transposed. */
  readonly apart: readonly Apart[];
}

interface Row extends PointerGroup {
  readonly pointer: Local;
  /** The stride, and its elements if it is constant, or 0. */
  readonly strideValue: Value;
  readonly by: number;
}

interface Apart {
  readonly group: PointerGroup;
  readonly pointer: Local;
}

/** Lowers a loop for compilers to unroll, and one with checked accesses that is run if its range is not in bounds. */
export function tiledLoop(
  s: Loop,
  on: Statements,
  { bounds, groups, checked }: {
    readonly bounds: Bounds;
    readonly groups: readonly PointerGroup[];
    readonly checked: () => void;
  },
): void {
  const pointers = groups.map((group) => setPointer(group, bounds.from, on));
  const unchecked = () => {
    uncheckedLoop(s, on, { bounds, groups, pointers });
    forget(groups, on);
  };
  if (on.x.inRange.has(s)) return unchecked();
  const last = lastOf(bounds);
  const inRange = groups.map((group, i) =>
    within(group, pointers[i]!, { last, on })
  );
  on.if(
    allOf([u.lt_u(bounds.from, bounds.to), ...inRange]),
    unchecked,
    () => rarely(checked, on),
  );
}

function uncheckedLoop(
  s: Loop,
  on: Statements,
  of: Pick<TiledLoop, "bounds" | "groups" | "pointers">,
): void {
  const { groups, pointers } = of;
  const rows = groups.flatMap((group, i): Row[] => {
    const { local: pointer, stride: strideValue } = pointers[i]!;
    const by = strideValue.op === "const" ? Number(strideValue.value) : 0;
    return group.transposed ? [] : [{ ...group, pointer, strideValue, by }];
  });
  const apart = groups.flatMap((group, i): Apart[] =>
    group.transposed ? [{ group, pointer: pointers[i]!.local }] : []
  );
  const loop: TiledLoop = { s, on, ...of, rows, apart };
  pointLoads(rows, 0, on.x);
  for (const { stores, pointer } of rows) {
    for (const [store, offset] of stores) {
      on.stored.set(store, { pointer, offset });
    }
  }
  if (apart.length > 0) loopOfTiles(loop);
  else loopOfRows(loop);
}

/** A loop without transposed words. */
function loopOfRows(loop: TiledLoop): void {
  const { s, on, bounds, groups, pointers, rows } = loop;
  if (on.prefetchesLater) on.emit({ op: "dequeue" });
  prefetchRows(groups, pointers, { words: spanOf(s), on });
  const prefetch = laterRows(rows, on);
  on.count({ ...bounds, unroll: unrolled(loop, UNROLL) }, () => {
    prefetch();
    iteration(loop);
  });
}

/** If lanes are loaded one by one, an iteration is long enough. */
function unrolled({ s, on }: TiledLoop, max: number): number {
  return gathers(s, on) ? 1 : max;
}

function iteration(loop: TiledLoop): void {
  loop.on.list(loop.s.body);
  advanceRows(loop, loop.bounds.step);
}

function advanceRows({ rows, on }: TiledLoop, by: Value): void {
  for (const { pointer, strideValue, bytes } of rows) {
    advance(pointer, u.mul(strideValue, by), { on, bytes });
  }
}

/** A loop over tiles: some iterations at a time, along which words are loaded and transposed. */
function loopOfTiles(loop: TiledLoop): void {
  const { s, on, bounds, rows, apart } = loop;
  const { x } = on;
  const { from, to, long } = bounds;
  const ahead = new Map(
    apart.map(({ group }) => [group, aheadOf(loop, group)] as const),
  );
  on.prefetchesLater ||= [...ahead.values()].includes("later");
  const start = newLocal("start", "u");
  const streams = apart.every(({ group }) =>
    ahead.get(group) === "along" && distanceOf(group) <= STREAM_APART
  );
  const max = streams && x.shapes.lanes === 8 ? STREAM_WORDS : Infinity;
  const words = tiledWords(s, on, max)!;
  const run = word(words);
  const index = newLocal("i", "u");
  const isFixed = rows.every(({ strideValue }) => strideValue.op === "const");
  const sums = x.shapes.lanes === 8 && isFixed ? byteSums(s, on) : undefined;
  on.count({ counter: start, from, to, step: run, long }, () => {
    const tiles = new Map<Expr, Local>();
    for (const one of apart) {
      loadTiles(loop, one, { tiles, words, ahead: ahead.get(one.group)! });
    }
    const setTiles = (index: Value) => {
      for (const [load, tile] of tiles) x.pointed.set(load, { tile, index });
    };
    if (sums) {
      const begin = (iteration: number) => {
        setTiles(word(iteration));
        pointLoads(rows, iteration, x);
      };
      addRound(sums, { start: get(start), iterations: words, begin, on });
      return advanceRows(loop, run);
    }
    setTiles(get(index));
    const tile = { counter: index, from: word(0), to: run, step: word(1) };
    const unroll = unrolled(loop, turnsUnrolled(s, words));
    on.count({ ...tile, long: false, unroll }, () => {
      on.set(bounds.counter, u.add(get(start), get(index)));
      iteration(loop);
    });
  });
}

/**
 * Iterations of a tile to unroll: all, so that no tile is in memory, or none if an iteration is long. Its loads of tiles
 * then cost little, and compilers take seconds for long unrolled loops.
 */
function turnsUnrolled(s: Loop, words: number): number {
  let size = 0;
  walkExpressions(s.body, () => size++);
  return words * size > MAX_UNROLLED ? 1 : words;
}

/** Loads the tiles of a group, and advances its pointer. */
function loadTiles(
  { on, groups, apart }: TiledLoop,
  { group, pointer }: Apart,
  { tiles, words, ahead }: {
    readonly tiles: Map<Expr, Local>;
    readonly words: number;
    readonly ahead: Ahead;
  },
): void {
  const { bytes } = group;
  for (const [load, constant] of group.loads) {
    const tile = newLocal("tile", "vu");
    on.emit({
      op: "turn",
      tile,
      from: on.x.memory(group.array),
      pointer,
      constant,
      apart: group.apart,
      bytes,
      words,
      ahead,
      // The other groups are those of rows.
      several: groups.length > 2 * apart.length,
    });
    tiles.set(load, tile);
  }
  advance(pointer, word(bytes ? 4 * words : words), { on, bytes });
}

/** Bytes between the loads of two lanes. */
function distanceOf({ apart, bytes }: PointerGroup): number {
  return (bytes ? 1 : 4) * apart;
}

/** What the loads of a group prefetch. */
function aheadOf({ s, on }: TiledLoop, group: PointerGroup): Ahead {
  // Loops that fill workgroup memory are followed by loops that compute with it.
  const stores = s.body.flatMap((s) => s.op === "sharedStore" ? [s] : []);
  const readsHere = stores.some(({ array }) => on.readHere.has(array));
  const fills = stores.length > 0 && !readsHere;
  if (!("binding" in on.x.memory(group.array))) return "none";
  const distance = distanceOf(group);
  const isStream = distance < (group.bytes ? MIN_ROW : LINE);
  if (isStream) return fills ? "none" : "stream";
  if (fills) return "later";
  if (readsHere) return "next";
  if (!on.repeats || distance <= STREAM_APART) return "along";
  // A repeated phase continues with the following rows, of which it may read a part.
  return distance <= MAX_NEAR ? "stream" : "next";
}

/** Whether lanes are loaded one by one. */
function gathers({ body }: Loop, { x }: Statements): boolean {
  return someExpression(body, (node) => {
    if (node.op !== "load" && node.op !== "shared") return false;
    const { stride } = x.shapes.of(node.index);
    return stride !== 0 && stride !== 1 && !x.pointed.has(node);
  });
}
