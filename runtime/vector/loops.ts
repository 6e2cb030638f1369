/**
 * Loops over uniform counters. Loads of innermost loops use pointers; in C, stores to the same rows use them too. Their
 * range is checked once, before the loop or those around it (`nestedLoop`). A second loop checks each access.
 */

import { endOf, mul } from "../../spec/kernel/build.ts";
import type { Expr } from "../../spec/kernel/tree.ts";
import { someExpression } from "../../spec/kernel/walk.ts";
import type { Loop } from "./accesses.ts";
import { spanOf } from "./analyze.ts";
import {
  addressOf,
  allOf,
  get,
  isWithin,
  type Local,
  newLocal,
  u,
  type Value,
  word,
} from "./ir.ts";
import { extentOf, findPointers, Invariants } from "./pointers.ts";
import type { PointerGroup } from "./pointers.ts";
import type { Expressions } from "./expression.ts";
import { addRound, byteSums } from "./byte_rounds.ts";
import { LINE, prefetchesRows, prefetchRows } from "./prefetch.ts";
import { nestedLoop, rarely } from "./ranges.ts";
import { iterationsOf } from "./rounds.ts";
import type { Statements } from "./statement.ts";

/** Iterations that a compiler unrolls. */
const UNROLL = 4;

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

/** Bounds of a loop in locals. */
interface Bounds {
  readonly counter: Local;
  readonly from: Value;
  readonly to: Value;
  readonly step: Value;
  readonly long: boolean;
}

/** A group's pointer, and its stride per iteration. */
interface Pointer {
  readonly local: Local;
  readonly base: Value;
  readonly stride: Value;
}

/** Lowers a loop that all lanes run equally often. */
export function countedLoop(s: Loop, on: Statements): void {
  const { around } = on;
  if (around) on.around = { ...around, isInner: true };
  else if (on.loops === "tiles" && prefetchesRows(s)) {
    const invariants = new Invariants(s, on.x.shapes, on.writable);
    on.around = { invariants, isInner: false };
  }
  lowerLoop(s, on);
  on.around = around;
}

function lowerLoop(s: Loop, on: Statements): void {
  const [from, to] = [on.keepWord(s.from), on.keepWord(endOf(s))];
  const step = on.keepWord(s.step);
  const counter = on.localOf(s.name);
  const bounds = { counter, from, to, step, long: on.isLong(s) };
  const groups = pointersOf(s, on);
  const checked = () => on.count(bounds, () => on.list(s.body));
  if (groups.length === 0 && !isStraight(s)) {
    const groupsOf = (inner: Loop) => pointersOf(inner, on);
    return nestedLoop(s, on, { lower: checked, groupsOf });
  }
  if (groups.length === 0 || on.x.rare) return checked();
  if (on.loops === "tiles") {
    return tiledLoop(s, on, { bounds, groups, checked });
  }
  on.set(counter, from);
  const label = { name: s.name };
  const body = on.listOf(() => {
    if (unrolledLoop(s, on, { bounds, groups, label })) return;
    on.count({ ...bounds, from: get(counter) }, () => on.list(s.body));
  });
  on.emit({ op: "block", label, body });
}

/** The loads and stores of an innermost loop whose range can be checked once, before it. */
function pointersOf(s: Loop, on: Statements): readonly PointerGroup[] {
  const { shapes } = on.x;
  if (!isStraight(s) || s.step.op !== "const" || !shapes.isUniform(s.from)) {
    return [];
  }
  const tiles = on.loops === "tiles";
  const apart = tiles && Number(s.step.value) === 1;
  const turns = apart && tiledWords(s, on) !== undefined;
  const stores = tiles && !on.isMasked;
  const { writable } = on;
  return findPointers(s, shapes, { writable, apart, turns, stores });
}

/** Numbers of words per lane that can be transposed at once. */
export function tileWidths(lanes: number): readonly number[] {
  return [lanes, lanes / 2, lanes / 4].filter((words) => words >= 4);
}

/**
 * Iterations of a loop whose loads are transposed at once, at most `max`. Undefined if its length does not allow it.
 */
function tiledWords(
  s: Loop,
  { x }: Statements,
  max = Infinity,
): number | undefined {
  return tileWidths(x.shapes.lanes).find((words) =>
    words <= max && spanOf(s) % words === 0
  );
}

/** Whether a loop contains neither loops nor branches. */
function isStraight(s: Loop): boolean {
  return s.body.every(({ op }) => op !== "for" && op !== "if");
}

/** Sets a pointer to a group's first element. */
function setPointer(
  group: PointerGroup,
  from: Value,
  on: Statements,
): Pointer {
  const base = on.keepSum("base", group.terms);
  const stride = typeof group.stride === "number"
    ? word(group.stride)
    : on.keepWord(group.stride.reduce((a, b) => mul(a, b)));
  const local = newLocal("p", "pointer");
  const first = u.add(base, u.mul(stride, from));
  on.set(local, addressOf(on.x.memory(group.array), first, group.bytes));
  return { local, base, stride };
}

/** Whether the elements of a group are in bounds, up to those of the last iteration. */
function within(
  group: PointerGroup,
  { base, stride }: Pointer,
  { last, on }: { readonly last: Value; readonly on: Statements },
): Value {
  return isWithin(on.x.memory(group.array), [base, stride, last], {
    constant: extentOf(group, on.x.shapes.lanes),
    bytes: group.bytes,
  });
}

function advance(
  pointer: Local,
  elements: Value,
  { on, bytes }: { readonly on: Statements; readonly bytes: boolean },
): void {
  on.set(pointer, addressOf(get(pointer), elements, bytes), false);
}

/** Sets the loads of an iteration after that of the pointers, which advance `by` elements in each. */
function pointLoads(
  groups: readonly (Pick<PointerGroup, "loads" | "apart"> & {
    readonly pointer: Local;
    readonly by: number;
  })[],
  iteration: number,
  { pointed }: Expressions,
): void {
  for (const { loads, apart, pointer, by } of groups) {
    for (const [load, constant] of loads) {
      pointed.set(load, { pointer, offset: constant + iteration * by, apart });
    }
  }
}

/** Removes pointers of loads and stores. */
function forget(groups: readonly PointerGroup[], on: Statements): void {
  for (const { loads, stores } of groups) {
    for (const load of loads.keys()) on.x.pointed.delete(load);
    for (const store of stores.keys()) on.stored.delete(store);
  }
}

/** The last value of a counter if its bounds are constant, otherwise an upper bound. */
function lastOf({ from, to, step }: Bounds): Value {
  const [first, end, by] = [from, to, step].map((bound) =>
    bound.op === "const" ? Number(bound.value) : NaN
  ) as [number, number, number];
  const last = first + Math.floor((end - 1 - first) / by) * by;
  return last >= first ? word(last) : u.sub(to, 1);
}

/** A loop for compilers to unroll, or one with checked accesses if its range is not in bounds. */
function tiledLoop(
  s: Loop,
  on: Statements,
  { bounds, groups, checked }: {
    readonly bounds: Bounds;
    readonly groups: readonly PointerGroup[];
    readonly checked: () => void;
  },
): void {
  const { x } = on;
  const { from, to, step, long } = bounds;
  const pointers = groups.map((group) => setPointer(group, from, on));
  const fast = () => {
    const rows = groups.flatMap((group, i) => {
      const { local: pointer, stride } = pointers[i]!;
      const by = stride.op === "const" ? Number(stride.value) : 0;
      return group.transposed ? [] : [{ ...group, pointer, stride, by }];
    });
    const setLoads = (iteration: number) => pointLoads(rows, iteration, x);
    const advanceRows = (by: Value) => {
      for (const { pointer, stride, bytes } of rows) {
        advance(pointer, u.mul(stride, by), { on, bytes });
      }
    };
    setLoads(0);
    for (const { stores, pointer } of rows) {
      for (const [store, offset] of stores) {
        on.stored.set(store, { pointer, offset });
      }
    }
    const iteration = () => {
      on.list(s.body);
      advanceRows(step);
    };
    // If lanes are loaded one by one, an iteration is long enough.
    const unrolled = (max: number) => gathers(s, on) ? 1 : max;
    const apart = groups.flatMap((group, i) =>
      group.transposed ? [{ group, pointer: pointers[i]!.local }] : []
    );
    if (apart.length === 0) {
      if (on.prefetchesLater) on.emit({ op: "dequeue" });
      prefetchRows(groups, pointers, { words: spanOf(s), on });
      return on.count({ ...bounds, unroll: unrolled(UNROLL) }, iteration);
    }
    // Loops that fill workgroup memory are followed by loops that compute with it.
    const stores = s.body.flatMap((s) => s.op === "sharedStore" ? [s] : []);
    const readsHere = stores.some(({ array }) => on.readHere.has(array));
    const fills = stores.length > 0 && !readsHere;
    const distanceOf = ({ apart, bytes }: PointerGroup) =>
      (bytes ? 1 : 4) * apart;
    const aheadOf = (group: PointerGroup) => {
      if (!("binding" in x.memory(group.array))) return "none";
      const distance = distanceOf(group);
      const isStream = distance < (group.bytes ? MIN_ROW : LINE);
      if (isStream) return fills ? "none" : "stream";
      if (fills) return "later";
      if (readsHere) return "next";
      if (!on.repeats || distance <= STREAM_APART) return "along";
      // A repeated phase continues with the following rows, of which it may read a part.
      return distance <= MAX_NEAR ? "stream" : "next";
    };
    on.prefetchesLater ||= apart.some(({ group }) =>
      aheadOf(group) === "later"
    );
    // Some iterations at a time, along which words are loaded.
    const start = newLocal("start", "u");
    const streams = apart.every(({ group }) =>
      aheadOf(group) === "along" && distanceOf(group) <= STREAM_APART
    );
    const max = streams && x.shapes.lanes === 8 ? STREAM_WORDS : Infinity;
    const words = tiledWords(s, on, max)!;
    // The other groups are those of rows.
    const several = groups.length > 2 * apart.length;
    const run = word(words);
    const index = newLocal("i", "u");
    const isFixed = rows.every(({ stride }) => stride.op === "const");
    const sums = x.shapes.lanes === 8 && isFixed ? byteSums(s, on) : undefined;
    on.count({ counter: start, from, to, step: run, long }, () => {
      const tiles = new Map<Expr, Local>();
      for (const { group, pointer } of apart) {
        const memory = x.memory(group.array);
        const { bytes } = group;
        for (const [load, constant] of group.loads) {
          const tile = newLocal("tile", "vu");
          on.emit({
            op: "turn",
            tile,
            from: memory,
            pointer,
            constant,
            apart: group.apart,
            bytes,
            words,
            ahead: aheadOf(group),
            several,
          });
          tiles.set(load, tile);
        }
        advance(pointer, bytes ? word(4 * words) : run, { on, bytes });
      }
      const setTiles = (index: Value) => {
        for (const [load, tile] of tiles) x.pointed.set(load, { tile, index });
      };
      if (sums) {
        const begin = (iteration: number) => {
          setTiles(word(iteration));
          setLoads(iteration);
        };
        addRound(sums, { start: get(start), iterations: words, begin, on });
        return advanceRows(run);
      }
      setTiles(get(index));
      // Few enough iterations that compilers unroll all of them and need no tile in memory.
      const tile = { counter: index, from: word(0), to: run, step: word(1) };
      const unroll = unrolled(words);
      on.count({ ...tile, long: false, unroll }, () => {
        on.set(bounds.counter, u.add(get(start), get(index)));
        iteration();
      });
    });
  };
  const unchecked = () => {
    fast();
    forget(groups, on);
  };
  if (x.inRange.has(s)) return unchecked();
  const last = lastOf(bounds);
  const inRange = groups.map((group, i) =>
    within(group, pointers[i]!, { last, on })
  );
  on.if(
    allOf([u.lt_u(from, to), ...inRange]),
    unchecked,
    () => rarely(checked, on),
  );
}

/** Whether lanes are loaded one by one. */
function gathers({ body }: Loop, { x }: Statements): boolean {
  return someExpression(body, (node) => {
    if (node.op !== "load" && node.op !== "shared") return false;
    const { stride } = x.shapes.of(node.index);
    return stride !== 0 && stride !== 1 && !x.pointed.has(node);
  });
}

/**
 * Lowers complete rounds, unrolled and unchecked, before the loop that checks every access, in a block that is left if
 * nothing remains. Returns whether nothing ever remains.
 */
function unrolledLoop(
  s: Loop,
  on: Statements,
  { bounds, groups, label }: {
    readonly bounds: Bounds;
    readonly groups: readonly PointerGroup[];
    readonly label: { readonly name: string };
  },
): boolean {
  const { x } = on;
  const { counter, from, to } = bounds;
  const step = Number((s.step as Extract<Expr, { op: "const" }>).value);
  const unrolled = iterationsOf(s, step, groups);
  const round = step * unrolled;
  const span = spanOf(s);
  if (span < round) return false;
  const isInRange = x.inRange.has(s);
  const isComplete = span % round === 0;
  // end = from + complete rounds, if from < to.
  const rounds = u.div_u(u.sub(to, from), round);
  const length = Number.isNaN(span)
    ? u.mul(rounds, round)
    : word(span - span % round);
  const end = on.keep("end", u.add(from, length));
  on.if(allOf([u.lt_u(from, to), u.ne(from, end)]), () => {
    const last = u.sub(end, 1);
    const pointers = groups.map((group) => setPointer(group, from, on));
    const strides = pointers.map(({ stride }) =>
      stride.op === "const" ? stride : on.keep("stride", u.mul(stride, step))
    );
    const rows = groups.map((group, i) => ({
      ...group,
      pointer: pointers[i]!.local,
      by: typeof group.stride === "number" ? step * group.stride : 0,
    }));
    const fast = () => {
      const body = on.listOf(() => {
        for (let copy = 0; copy < unrolled; copy++) {
          pointLoads(rows, copy, x);
          on.list(s.body);
          rows.forEach(({ stride, pointer }, i) => {
            const last = copy === unrolled - 1;
            if (typeof stride !== "number") {
              advance(pointer, strides[i]!, { on, bytes: false });
            } else if (last && stride) {
              advance(pointer, word(round * stride), { on, bytes: false });
            }
          });
          on.set(counter, u.add(get(counter), step), false);
        }
      });
      forget(groups, on);
      on.emit({ op: "repeat", body, condition: u.ne(get(counter), end) });
      // Nothing remains for the loop that checks every access.
      if (isComplete && !isInRange) on.emit({ op: "leave", label });
    };
    if (isInRange) return fast();
    const inRange = groups.map((group, i) =>
      within(group, pointers[i]!, { last, on })
    );
    on.if(allOf(inRange), fast);
  });
  return isInRange && isComplete;
}
