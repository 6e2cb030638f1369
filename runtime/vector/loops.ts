/**
 * Loops over uniform counters. Loads of innermost loops use pointers; in C, stores to the same rows use them too. Their
 * range is checked once, before the loop or those around it (`nestedLoop`). A second loop checks each access.
 */

import { endOf } from "../../spec/kernel/build.ts";
import type { Expr } from "../../spec/kernel/tree.ts";
import type { Loop } from "./accesses.ts";
import { spanOf } from "./analyze.ts";
import { allOf, get, u, word } from "./ir.ts";
import {
  advance,
  type Bounds,
  forget,
  pointLoads,
  setPointer,
  within,
} from "./loop_pointers.ts";
import { findPointers, Invariants, type PointerGroup } from "./pointers.ts";
import { prefetchesRows } from "./prefetch.ts";
import { nestedLoop } from "./ranges.ts";
import { iterationsOf } from "./rounds.ts";
import type { Statements } from "./statement.ts";
import { tiledLoop, tiledWords } from "./tiled_loop.ts";

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

/** Whether a loop contains neither loops nor branches. */
function isStraight(s: Loop): boolean {
  return s.body.every(({ op }) => op !== "for" && op !== "if");
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
