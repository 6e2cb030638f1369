/**
 * Prefetches in a loop whose iterations contain loops, such as one over tokens: what a later iteration loads or stores
 * at an index that advances by a constant of at least a cache line. Inner loops take so long that processors do not
 * look that far ahead.
 */

import type { Expr, Stmt } from "../../spec/kernel/tree.ts";
import { expressionsOf, walkExpression } from "../../spec/kernel/walk.ts";
import { spanOf } from "./analyze.ts";
import { addressOf, get, type Local, u, type Value, word } from "./ir.ts";
import { linearIn, type PointerGroup } from "./pointers.ts";
import type { Statements } from "./statement.ts";

type ForStmt = Extract<Stmt, { op: "for" }>;

/** Iterations between a prefetch and its use. The next iteration's rows may be loaded in this one. */
const AHEAD = 2;

/** Words of a cache line. */
const LINE = 16;

/** Maximum words of a row that are prefetched at once. */
const MAX_ROW = 64;

/** Whether a loop has iterations to prefetch for, and such that are long enough. */
export function isLong(s: ForStmt): boolean {
  return s.step.op === "const" && Number(s.step.value) === 1 &&
    !(spanOf(s) <= AHEAD) && s.body.some(({ op }) => op === "for");
}

function fetch(address: Value, write: boolean, on: Statements): void {
  on.emit({ op: "fetch", address, write });
}

/** Prefetches what a statement of a long loop accesses some iterations later. */
export function fetchLater(s: Stmt, loop: ForStmt, on: Statements): void {
  const { x } = on;
  const later = (array: string, index: Expr, write: boolean) => {
    const { stride: lane } = x.shapes.of(index);
    if (lane !== 0 && lane !== 1) return;
    const form = linearIn(loop, index, on);
    // Of the accesses of a row, the first in each line.
    if (!form || form.stride < LINE || form.constant % LINE !== 0) return;
    const ahead = u.add(x.word(index), AHEAD * form.stride);
    fetch(addressOf(x.memory(array), ahead), write, on);
  };
  for (const top of expressionsOf(s)) {
    walkExpression(top, (e) => {
      if (e.op === "load") later(e.binding, e.index, false);
    });
  }
  if (s.op === "store") later(s.binding, s.index, true);
}

/** Prefetches the rows that an inner loop loads some iterations of the long loop around it later. */
export function fetchRows(
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
    const forms = terms.map((term) => linearIn(around.loop, term, on));
    const advance = forms.reduce((n, form) => n + (form?.stride ?? 0), 0);
    // Processors prefetch rows that follow each other in memory.
    if (advance <= Math.max(LINE, words)) return;
    for (let at = 0; at < words; at += LINE) {
      const ahead = word(AHEAD * advance + at);
      fetch(addressOf(get(pointers[i]!.local), ahead), false, on);
    }
  });
}
