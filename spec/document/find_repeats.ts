/**
 * Finds repetition in a list: consecutive parts of equal length that are equal except for numbers. Numbers in strings
 * must increase by a constant from part to part; numeric values may be arbitrary.
 */

import { type Json, linearText, mentions, type Repeat } from "./repeat.ts";

/** Minimum number of items that a repeat must save. */
const MIN_SAVED = 8;

/** Maximum items per part. */
const LONGEST = 1024;

/** An item split into its constant shape and its numbers: those in strings, and values. */
interface Shape {
  /** Equal for items that differ only in numbers. */
  readonly id: number;
  readonly inText: readonly number[];
  readonly values: readonly number[];
}

/** Numbers in a text in canonical form. */
const NUMBER = /(?<!\d)(?:0|[1-9]\d{0,14})(?!\d)/g;

function shapesOf(list: readonly Json[]): Shape[] {
  const ids = new Map<string, number>();
  return list.map((item) => {
    const inText: number[] = [];
    const values: number[] = [];
    const text = JSON.stringify(item, (_, value: Json) => {
      if (typeof value === "number") {
        values.push(value);
        return 0;
      }
      if (typeof value !== "string") return value;
      return value.replace(NUMBER, (digits) => {
        inText.push(Number(digits));
        return "#";
      });
    });
    const id = ids.get(text) ?? ids.size;
    ids.set(text, id);
    return { id, inText, values };
  });
}

/** A run of equal parts. */
interface Run {
  readonly start: number;
  readonly period: number;
  readonly times: number;
  /** Number of items by which the run could start later. */
  readonly slack: number;
}

/** Whether the numbers in the strings of three items of equal shape increase by a constant. */
function isEven(a: Shape, b: Shape, c: Shape): boolean {
  return a.id === b.id && b.id === c.id &&
    a.inText.every((n, i) => b.inText[i]! - n === c.inText[i]! - b.inText[i]!);
}

/** Whether two items, without a third, belong to consecutive layers. */
function isNext(a: Shape, b: Shape): boolean {
  const steps = a.inText.map((n, i) => b.inText[i]! - n);
  return steps.includes(1) || steps.every((step) => step === 0);
}

/** The run with the largest savings in the items from `from` below `to`. */
function longestRun(
  shapes: readonly Shape[],
  from: number,
  to: number,
): Run | undefined {
  let best: Run | undefined;
  let saved = MIN_SAVED - 1;
  const keep = (
    start: number,
    period: number,
    times: number,
    slack: number,
  ) => {
    const saves = period * (times - 1);
    if (saves < saved || saves === saved && best?.period !== period) return;
    saved = saves;
    best = { start, period, times, slack };
  };
  const longest = Math.min(LONGEST, Math.floor((to - from) / 2));
  for (let period = 1; period <= longest; period++) {
    // Number of items from here on that continue evenly in the two following parts, or in the next one.
    let [even, next] = [0, 0];
    for (let i = to - period - 1; i >= from; i--) {
      const [a, b] = [shapes[i]!, shapes[i + period]!];
      if (a.id !== b.id) {
        [even, next] = [0, 0];
        continue;
      }
      const c = i + 2 * period < to ? shapes[i + 2 * period]! : undefined;
      next = isNext(a, b) ? next + 1 : 0;
      even = c?.id === b.id && isEven(a, b, c) ? even + 1 : 0;
      const times = Math.floor(even / period) + 2;
      if (times > 2) keep(i, period, times, even % period);
      else if (next >= period) keep(i, period, 2, next - period);
    }
  }
  return best;
}

/** The numbers in strings that increase by one per part: their values in the first part. */
function layersOf(
  shapes: readonly Shape[],
  start: number,
  period: number,
): Map<number, number> {
  const found = new Map<number, number>();
  for (let i = start; i < start + period; i++) {
    for (const [n, number] of shapes[i]!.inText.entries()) {
      if (shapes[i + period]!.inText[n] !== number + 1) continue;
      found.set(number, (found.get(number) ?? 0) + 1);
    }
  }
  return found;
}

/** The start of a run's parts such that each part contains as much of one layer as possible. */
function aligned(shapes: readonly Shape[], run: Run): number {
  let best = run.start;
  let fewest = Infinity;
  for (let start = run.start; start <= run.start + run.slack; start++) {
    const counts = [...layersOf(shapes, start, run.period).values()];
    const others = counts.reduce((a, b) => a + b, 0) - Math.max(0, ...counts);
    if (others < fewest) [best, fewest] = [start, others];
  }
  return best;
}

/** A list with repetition written once. `expandRepeats` is the inverse. */
export function findRepeats(list: readonly Json[]): readonly (Json | Repeat)[] {
  const shapes = shapesOf(list);
  const fold = (from: number, to: number): (Json | Repeat)[] => {
    const run = longestRun(shapes, from, to);
    if (!run) return list.slice(from, to);
    const { period, times } = run;
    const start = aligned(shapes, run);
    const end = start + period * times;
    const parts = Array.from(
      { length: times },
      (_, k) => list.slice(start + k * period, start + (k + 1) * period),
    );
    return [
      ...fold(from, start),
      repeatOf(parts, layersOf(shapes, start, period)),
      ...fold(end, to),
    ];
  };
  return fold(0, list.length);
}

/** Combines parts into a repeat. */
function repeatOf(
  parts: readonly (readonly Json[])[],
  layers: ReadonlyMap<number, number>,
): Repeat {
  // The most frequent number of a part is the layer.
  const [from = 0] = [...layers].reduce<readonly number[]>(
    (best, layer) => layer[1] > (best[1] ?? 0) ? layer : best,
    [],
  );
  let name = wordOf(parts[0]!, from);
  while (parts.some((part) => mentions(part, name))) name += "_";
  return {
    repeat: name,
    from,
    to: from + parts.length - 1,
    body: parts[0]!.map((_, i) =>
      merge(parts.map((part) => part[i]!), { name, from })
    ),
  };
}

/** The word before the number in the names of a part, such as `layer` for `layers.3`. */
function wordOf(part: readonly Json[], number: number): string {
  const found = new RegExp(`([a-z_]{2,64})\\.${number}(?!\\d)`, "i")
    .exec(JSON.stringify(part));
  const [, word = "part"] = found ?? [];
  return word.toLowerCase().replace(/s$/, "");
}

/** The variable of a repeat and its first value. */
interface Over {
  readonly name: string;
  readonly from: number;
}

/** Combines an item of every part. */
function merge(values: readonly Json[], over: Over): Json {
  const [first, second] = values as readonly [Json, Json];
  if (typeof first === "number") {
    const numbers = values as readonly number[];
    const step = (second as number) - first;
    if (numbers.every((n) => Object.is(n, first))) return first;
    const even = Number.isSafeInteger(first) && Number.isSafeInteger(step) &&
      numbers.every((n, k) => n === first + k * step);
    return even
      ? `=${linearText(over.name, { step, first: first - step * over.from })}`
      : { each: numbers };
  }
  if (typeof first === "string") {
    return mergeText(first, second as string, over);
  }
  if (typeof first !== "object" || first === null) return first;
  if (Array.isArray(first)) {
    return first.map((_, i) =>
      merge(values.map((list) => (list as readonly Json[])[i]!), over)
    );
  }
  return Object.fromEntries(
    Object.keys(first).map((key) => [
      key,
      merge(
        values.map((item) => (item as { readonly [key: string]: Json })[key]!),
        over,
      ),
    ]),
  );
}

/** Combines a string of every part, with expressions for its numbers. */
function mergeText(
  first: string,
  second: string,
  { name, from }: Over,
): string {
  if (first === second) return first;
  const next = [...second.matchAll(NUMBER)].map(([digits]) => Number(digits));
  let i = 0;
  return first.replace(NUMBER, (digits) => {
    const number = Number(digits);
    const step = next[i++]! - number;
    if (step === 0) return digits;
    return `{${linearText(name, { step, first: number - step * from })}}`;
  });
}
