/**
 * Prefetches in a loop that contains loops, such as one over tokens: the lines that a later iteration loads or stores
 * at an index that advances by a constant of at least a cache line. Inner loops take so long that processors do not
 * look that far ahead.
 */

import type { Expr, Stmt } from "../../spec/kernel/tree.ts";
import { someStatement } from "../../spec/kernel/walk.ts";
import { type Loop, walkLoads } from "./accesses.ts";
import { spanOf } from "./analyze.ts";
import { addressOf, get, type Local, u, type Value, word } from "./ir.ts";
import { type Invariants, linearIn, type PointerGroup } from "./pointers.ts";
import type { Statements } from "./statement.ts";

/** Bytes of a cache line. */
export const LINE = 64;

/** Words of a cache line. */
const LINE_WORDS = LINE / 4;

/** Iterations between a prefetch and its use. The next iteration's rows may be loaded in this one. */
const AHEAD = 2;

/** Maximum words of a row that are prefetched at once. */
const MAX_ROW = 64;

/** Rows between a prefetch and its use in a repeated phase: one of 32 rows continues in the next block. */
const ROWS_AHEAD = 16;

/** The loop whose later iterations are prefetched for. */
export interface PrefetchLoop {
  readonly invariants: Invariants;
  /** Whether the statement at hand is in a loop inside it. */
  readonly isInner: boolean;
}

/** Whether a loop contains loops, also in branches, and has enough iterations to prefetch for. */
export function prefetchesRows(s: Loop): boolean {
  return s.step.op === "const" && Number(s.step.value) === 1 &&
    !(spanOf(s) <= AHEAD) && someStatement(s.body, ({ op }) => op === "for");
}

function prefetch(address: Value, write: boolean, on: Statements): void {
  on.emit({ op: "prefetch", address, write, stream: false });
}

/** Prefetches the lines that a statement of a loop accesses in a later iteration. */
export function prefetchAccesses(
  s: Stmt,
  invariants: Invariants,
  on: Statements,
): void {
  const { x } = on;
  const later = (array: string, index: Expr, write: boolean) => {
    const { stride: lane } = x.shapes.of(index);
    if (lane !== 0 && lane !== 1) return;
    const form = linearIn(invariants, index);
    // Of the accesses of a row, the first in each line.
    if (!form || form.stride < LINE_WORDS) return;
    if (form.constant % LINE_WORDS !== 0) return;
    const ahead = u.add(x.word(index), AHEAD * form.stride);
    prefetch(addressOf(x.memory(array), ahead), write, on);
  };
  walkLoads(s, (e) => {
    if (e.op === "load") later(e.binding, e.index, false);
  });
  if (s.op === "store") later(s.binding, s.index, true);
}

/** Prefetches the rows that an inner loop loads in a later iteration of the loop around it. */
export function prefetchRows(
  groups: readonly PointerGroup[],
  pointers: readonly { readonly local: Local }[],
  { words, on }: {
    /** Words of a row. */
    readonly words: number;
    readonly on: Statements;
  },
): void {
  const { around } = on;
  if (!around || !(words <= MAX_ROW)) return;
  groups.forEach(({ terms, stride, apart, bytes, array }, i) => {
    if (stride !== 1 || apart !== 0 || bytes || on.writable.has(array)) return;
    const forms = terms.map((term) => linearIn(around.invariants, term));
    const advance = forms.reduce((n, form) => n + (form?.stride ?? 0), 0);
    // Processors prefetch rows that follow each other in memory.
    if (advance <= Math.max(LINE_WORDS, words)) return;
    for (let at = 0; at < words; at += LINE_WORDS) {
      const ahead = word(AHEAD * advance + at);
      prefetch(addressOf(get(pointers[i]!.local), ahead), false, on);
    }
  });
}

/**
 * Returns what prefetches lines of later rows in each iteration of a loop in a repeated phase, such as one over the
 * values of a head: the phase loads a part of each row, and rows are too far apart for processors to look ahead.
 */
export function laterRows(
  rows: readonly (PointerGroup & {
    readonly pointer: Local;
    /** Elements per iteration; 0: not constant. */
    readonly by: number;
  })[],
  on: Statements,
): () => void {
  const { x, writable, repeats } = on;
  const lines = rows.flatMap(({ array, bytes, by, loads, pointer }) => {
    if (by < LINE_WORDS || bytes || writable.has(array)) return [];
    if (!("binding" in x.memory(array))) return [];
    return [...loads].flatMap(([load, constant]) =>
      load.op === "load" && x.shapes.of(load.index).stride === 1
        ? [{ pointer, constant, words: ROWS_AHEAD * by }]
        : []
    );
  });
  if (!repeats || lines.length === 0) return () => {};
  // 1 if the next iteration around this loop has all of its rows. The pages of other rows may be missing, and each
  // prefetch from a missing page searches the page tables.
  const next = u.add(get(repeats.counter), u.mul(repeats.step, 2));
  const more = on.keep("more", u.le_u(next, repeats.to));
  return () => {
    for (const { pointer, constant, words } of lines) {
      const later = u.add(u.mul(more, words), constant);
      const address = addressOf(get(pointer), later);
      on.emit({ op: "prefetch", address, write: false, stream: true });
    }
  };
}
