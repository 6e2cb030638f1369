/**
 * Innermost loops whose loads go through pointers: addresses that advance, in locals, of which a loop checks the range once, before
 * it starts.
 */

import { mul } from "../../spec/kernel/build.ts";
import type { Expr, Stmt } from "../../spec/kernel/tree.ts";
import {
  expressionsOf,
  spanOf,
  walkExpression,
  walkStatements,
} from "./analyze.ts";
import type { Expressions } from "./expression.ts";
import { findPointers, type PointerGroup } from "./pointers.ts";

type ForStmt = Extract<Stmt, { op: "for" }>;

/** Expressions of a loop body up to which it is unrolled four times, and twice. */
const UNROLL_FOUR = 220;
const UNROLL_TWO = 700;

/** Vector registers of a processor with the fewest. */
const REGISTERS = 16;

/** Elements that a pointer may advance in one iteration of an unrolled loop. */
const MAX_LEAP = 2 ** 26;

/** Locals of a loop that is printed, and how far it counts in an iteration. */
export interface CountedLoop {
  readonly counter: number;
  readonly from: number;
  readonly to: number;
  readonly step: number;
}

/** What prints a loop. */
export interface LoopPrinter {
  readonly x: Expressions;
  /** Bindings that the kernel writes. */
  readonly writable: ReadonlySet<string>;
  printBody(): void;
}

/**
 * Iterations of a loop whose loads fit registers beside what the loop sums, as engines load all of an unrolled round before they
 * compute. Infinity: not those of one, so sums are in memory, and the longer a round the less often they are loaded.
 */
function iterationsInRegisters(
  body: readonly Stmt[],
  groups: readonly PointerGroup[],
): number {
  const sums = new Set<string>();
  walkStatements(body, (s) => {
    if (s.op === "set" && s.value.type === "f32") sums.add(s.name);
  });
  const loads = groups.reduce((n, group) => n + group.loads.size, 0);
  const room = REGISTERS - sums.size;
  if (loads > room) return Infinity;
  return [4, 2].find((unrolled) => unrolled * loads <= room) ?? 1;
}

/** Iterations in an unrolled round of a loop. */
function iterationsOf(
  s: ForStmt,
  step: number,
  groups: readonly PointerGroup[],
): number {
  // Steps and strides so large that offsets of an unrolled round would not fit 32 bits are not unrolled.
  const far = groups.some(({ stride }) =>
    step * (typeof stride === "number" ? Math.max(1, stride) : 1) >= MAX_LEAP
  );
  if (far) return 1;
  let size = 0;
  const seen = new Set<Expr>();
  walkStatements(s.body, (inner) => {
    for (const e of expressionsOf(inner)) {
      walkExpression(e, () => size++, seen);
    }
  });
  const bySize = size > UNROLL_TWO ? 1 : size > UNROLL_FOUR ? 2 : 4;
  return Math.min(bySize, iterationsInRegisters(s.body, groups));
}

/** Whether a loop has neither loops nor branches inside. */
function isStraight(s: ForStmt): boolean {
  return s.body.every(({ op }) => op !== "for" && op !== "if");
}

/**
 * Print as many whole rounds as there are, unrolled and unchecked, in front of the loop that checks every access, in a block
 * that is left where nothing remains.
 */
export function printFastLoop(
  s: ForStmt,
  loop: CountedLoop,
  { x, writable, printBody }: LoopPrinter,
): void {
  const { f } = x;
  if (!isStraight(s) || !x.shapes.isUniform(s.from)) return;
  const groups = findPointers(s, x.shapes, { writable });
  if (groups.length === 0) return;
  const unrolled = iterationsOf(s, loop.step, groups);
  const round = loop.step * unrolled;

  // end = from + whole rounds, if from < to.
  const end = f.local("i32");
  f.get(loop.to);
  f.get(loop.from);
  f.op("i32.sub");
  f.i32(round);
  f.op("i32.div_u");
  f.i32(round);
  f.op("i32.mul");
  f.get(loop.from);
  f.op("i32.add");
  f.set(end);
  f.get(loop.from);
  f.get(loop.to);
  f.op("i32.lt_u");
  f.get(loop.from);
  f.get(end);
  f.op("i32.ne", "i32.and");
  f.if();
  const pointers = groups.map((group) => setPointer(group, loop, { x, end }));
  for (let i = 1; i < pointers.length; i++) f.op("i32.and");
  f.if();
  f.loop();
  for (let copy = 0; copy < unrolled; copy++) {
    groups.forEach((group, i) => {
      const { pointer } = pointers[i]!;
      for (const [load, constant] of group.loads) {
        const steps = typeof group.stride === "number"
          ? constant + copy * loop.step * group.stride
          : constant;
        x.pointed.set(load, { pointer, offset: 4 * steps });
      }
    });
    printBody();
    groups.forEach((group, i) => {
      const last = copy === unrolled - 1;
      if (typeof group.stride === "number" && (!last || !group.stride)) return;
      const { pointer, bytes } = pointers[i]!;
      f.get(pointer);
      if (typeof group.stride === "number") f.i32(4 * round * group.stride);
      else f.get(bytes!);
      f.op("i32.add");
      f.set(pointer);
    });
    f.get(loop.counter);
    f.i32(loop.step);
    f.op("i32.add");
    f.set(loop.counter);
  }
  for (const group of groups) {
    for (const load of group.loads.keys()) x.pointed.delete(load);
  }
  f.get(loop.counter);
  f.get(end);
  f.op("i32.ne");
  f.branchIf(0);
  f.op("end");
  // Nothing is left for the loop that checks every access.
  if (spanOf(s) % round === 0) f.branch(2);
  f.op("end", "end");
}

/** Set a group's pointer to its first element, and push whether all of its elements, up to `end`, are in the array. */
function setPointer(
  group: PointerGroup,
  loop: CountedLoop,
  { x, end }: { readonly x: Expressions; readonly end: number },
): { pointer: number; bytes?: number } {
  const { f } = x;
  const view = x.views.get(group.array)!;
  const pointer = f.local("i32");
  const base = f.local("i32");
  f.i32(0);
  for (const term of group.terms) {
    x.begin([term]);
    x.scalar(term);
    f.op("i32.add");
  }
  f.set(base);
  const stride = f.local("i32");
  if (typeof group.stride === "number") f.i32(group.stride);
  else {
    x.begin(group.stride);
    x.scalar(group.stride.reduce((a, b) => mul(a, b)));
  }
  f.set(stride);
  f.get(base);
  f.get(stride);
  f.get(loop.from);
  f.op("i32.mul", "i32.add");
  f.i32(2);
  f.op("i32.shl");
  f.get(view.address);
  f.op("i32.add");
  f.set(pointer);
  let bytes: number | undefined;
  if (typeof group.stride !== "number") {
    bytes = f.local("i32");
    f.get(stride);
    f.i32(4 * loop.step);
    f.op("i32.mul");
    f.set(bytes);
  }
  // In 64 bits nothing wraps: base + constant + stride * last counter < length.
  f.get(end);
  f.i32(1);
  f.op("i32.sub", "i64.extend_i32_u");
  f.get(stride);
  f.op("i64.extend_i32_u", "i64.mul");
  f.get(base);
  f.op("i64.extend_i32_u", "i64.add");
  f.i64(Math.max(...group.loads.values()));
  f.op("i64.add");
  f.get(view.length);
  f.op("i64.extend_i32_u", "i64.lt_u");
  return bytes === undefined ? { pointer } : { pointer, bytes };
}
