/**
 * Innermost loops whose loads go through pointers: addresses that advance, in locals, of which a loop, or
 * the one around it (`Ahead`), checks the range once, before it starts.
 */

import { mul } from "../../spec/kernel/build.ts";
import type { Stmt } from "../../spec/kernel/tree.ts";
import { walkExpressions, walkStatements } from "../../spec/kernel/walk.ts";
import { spanOf } from "../vector/analyze.ts";
import type { Expressions, Place } from "./expression.ts";
import {
  coursesIn,
  findPointers,
  type PointerGroup,
} from "../vector/pointers.ts";

type ForStmt = Extract<Stmt, { op: "for" }>;

/** Expressions of a loop body up to which it is unrolled four times, and twice. */
const UNROLL_FOUR = 220;
const UNROLL_TWO = 700;

/** Vector registers of a processor with the fewest. */
const REGISTERS = 16;

/** Iterations of a loop whose addresses are found ahead. */
const MAX_SPAN = 2 ** 24;

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
  /** Memory for a word. */
  take(): Place;
  /** What was found before the loop around. */
  readonly ahead?: Ahead | undefined;
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
  walkExpressions(s.body, () => size++);
  const bySize = size > UNROLL_TWO ? 1 : size > UNROLL_FOUR ? 2 : 4;
  return Math.min(bySize, iterationsInRegisters(s.body, groups));
}

/** Whether a loop has neither loops nor branches inside. */
function isStraight(s: ForStmt): boolean {
  return s.body.every(({ op }) => op !== "for" && op !== "if");
}

/** A pointer of a group: a local; and bytes from one iteration to the next where these are known only when it runs. */
interface Pointer {
  readonly pointer: number;
  readonly bytes?: number;
}

/** Addresses of the loads of a loop for all iterations of one around, in locals, and whether they are in their arrays. */
export interface Ahead {
  readonly groups: readonly PointerGroup[];
  /** A word that is not 0 where they are: engines would find a local's value again in each iteration. */
  readonly inRange: Place;
  /** Where each group would begin at 0 of the counter around, and how many elements later for each of that. */
  readonly starts: readonly {
    readonly address: number;
    readonly stride: number;
  }[];
  /** Local of the counter around. */
  readonly counter: number;
}

/** What is known of loops inside before a loop of known length starts. */
export function lookAhead(
  outer: ForStmt,
  counter: number,
  { x, writable, take }: Omit<LoopPrinter, "printBody" | "ahead">,
): ReadonlyMap<ForStmt, Ahead> {
  const found = new Map<ForStmt, Ahead>();
  const { f, shapes } = x;
  const { from, to } = outer;
  if (from.op !== "const" || to.op !== "const") return found;
  const most = Number(to.value) - 1;
  if (most >= MAX_SPAN) return found;
  for (const inner of outer.body) {
    if (inner.op !== "for" || !isStraight(inner)) continue;
    const span = spanOf(inner);
    if (!(span > 0 && span < MAX_SPAN)) continue;
    const groups = findPointers(inner, shapes, { writable });
    const on = { groups, shapes, writable, most };
    const courses = coursesIn(outer, inner, on);
    if (!courses || groups.length === 0) continue;
    const lasts = courses.map(({ constant, stride }, i) => {
      const { loads, stride: along } = groups[i]!;
      return constant + Math.max(...loads.values()) + stride * most +
        Number(along) * (span - 1);
    });
    // No array is as long, and constants of i64 are below 2^31.
    if (lasts.some((last) => last >= 2 ** 31)) continue;
    const inRange = take();
    f.get(inRange.base);
    const starts = courses.map(({ terms, constant, stride }, i) => {
      const view = x.views.get(groups[i]!.array)!;
      const [base, address] = [f.local("i32"), f.local("i32")];
      f.i32(0);
      for (const term of terms) {
        x.begin([term]);
        x.scalar(term);
        f.op("i32.add");
      }
      f.tee(base);
      f.i32(constant);
      f.op("i32.add");
      f.i32(2);
      f.op("i32.shl");
      f.get(view.address);
      f.op("i32.add");
      f.set(address);
      // In 64 bits nothing wraps.
      f.get(base);
      f.op("i64.extend_i32_u");
      f.i64(lasts[i]!);
      f.op("i64.add");
      f.get(view.length);
      f.op("i64.extend_i32_u", "i64.lt_u");
      if (i > 0) f.op("i32.and");
      return { address, stride };
    });
    f.load("i32.store", inRange.offset);
    found.set(inner, { groups, inRange, starts, counter });
  }
  return found;
}

/**
 * Print as many whole rounds as there are, unrolled and unchecked, in front of the loop that checks every access, in a block
 * that is left where nothing remains.
 */
export function printFastLoop(
  s: ForStmt,
  loop: CountedLoop,
  { x, writable, printBody, ahead }: LoopPrinter,
): void {
  const { f } = x;
  if (!isStraight(s) || !x.shapes.isUniform(s.from)) return;
  const groups = ahead?.groups ?? findPointers(s, x.shapes, { writable });
  if (groups.length === 0) return;
  const unrolled = iterationsOf(s, loop.step, groups);
  const round = loop.step * unrolled;
  const span = spanOf(s);
  // end = from + whole rounds, if from < to.
  const end = f.local("i32");
  f.get(loop.from);
  if (ahead) f.i32(span - span % round);
  else {
    f.get(loop.to);
    f.get(loop.from);
    f.op("i32.sub");
    f.i32(round);
    f.op("i32.div_u");
    f.i32(round);
    f.op("i32.mul");
  }
  f.op("i32.add");
  f.set(end);
  if (ahead) f.i32(span < round ? 0 : 1);
  else {
    f.get(loop.from);
    f.get(loop.to);
    f.op("i32.lt_u");
    f.get(loop.from);
    f.get(end);
    f.op("i32.ne", "i32.and");
  }
  f.if();
  const pointers = ahead
    ? setPointers(ahead, x)
    : groups.map((group) => setPointer(group, loop, { x, end }));
  for (let i = 1; i < pointers.length && !ahead; i++) f.op("i32.and");
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
  if (span % round === 0) f.branch(2);
  f.op("end", "end");
}

/** Set pointers to their first elements by what was found before the loop around, and push whether all are in the arrays. */
function setPointers(
  { starts, inRange, counter }: Ahead,
  { f }: Expressions,
): Pointer[] {
  const pointers = starts.map(({ address, stride }) => {
    const pointer = f.local("i32");
    f.get(address);
    f.get(counter);
    f.i32(4 * stride);
    f.op("i32.mul", "i32.add");
    f.set(pointer);
    return { pointer };
  });
  f.get(inRange.base);
  f.load("i32.load", inRange.offset);
  return pointers;
}

/** Set a group's pointer to its first element, and push whether all of its elements, up to `end`, are in the array. */
function setPointer(
  group: PointerGroup,
  loop: CountedLoop,
  { x, end }: { readonly x: Expressions; readonly end: number },
): Pointer {
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
