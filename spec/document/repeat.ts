/**
 * Lists with parts that repeat up to numbers, such as the layers of a model: one part is written once, with numbers as
 * expressions of its index. This file defines the form and expands it; `find_repeats.ts` finds repetition.
 */

import { PlanError } from "../errors.ts";

/** A JSON value. */
export type Json =
  | null
  | boolean
  | number
  | string
  | readonly Json[]
  | { readonly [key: string]: Json };

/**
 * An item that represents `to - from + 1` parts, one for each value of the variable `repeat`. In strings of `body`,
 * `{layer}`, `{layer+1}` or `{4*layer-2}` is a number; the string `=4*layer-2` is the number itself, and the object `{
 * "each": [7, 9, 4] }` lists the number of each part.
 */
export interface Repeat {
  readonly repeat: string;
  readonly from: number;
  readonly to: number;
  readonly body: readonly Json[];
}

/** Maximum items of an expanded list, whatever a short document requests. */
const MAX_ITEMS = 1 << 18;

/** Whether an item of a list is a repeat that can be expanded. */
export function isRepeat(item: unknown): item is Repeat {
  if (typeof item !== "object" || item === null) return false;
  const { repeat, from, to, body } = item as Partial<Repeat>;
  return typeof repeat === "string" && /^[a-z_]{1,64}$/.test(repeat) &&
    Number.isSafeInteger(from) && Number.isSafeInteger(to) &&
    Array.isArray(body);
}

/** The linear expression `4*layer-2`. */
interface Linear {
  readonly step: number;
  readonly first: number;
}

/** Patterns for expressions of a variable. */
interface Variable {
  readonly inText: RegExp;
  readonly alone: RegExp;
}

function variableOf(name: string): Variable {
  const expression = `(?:(-?\\d{1,9})\\*)?${name}([+-]\\d{1,15})?`;
  return {
    inText: new RegExp(`\\{${expression}\\}`, "g"),
    alone: new RegExp(`^=${expression}$`),
  };
}

function linear(step: string | undefined, first: string | undefined): Linear {
  return { step: Number(step ?? 1), first: Number(first ?? 0) };
}

/** `4*layer-2` */
export function linearText(name: string, { step, first }: Linear): string {
  const times = step === 1 ? "" : `${step}*`;
  return `${times}${name}${first === 0 ? "" : first > 0 ? `+${first}` : first}`;
}

/** Whether a value literally contains an expression of a variable, which expansion would not preserve. */
export function mentions(value: Json, name: string): boolean {
  const { inText, alone } = variableOf(name);
  const within = (value: Json): boolean => {
    if (typeof value === "string") {
      inText.lastIndex = 0;
      return inText.test(value) || alone.test(value);
    }
    if (typeof value !== "object" || value === null) return false;
    if (isEach(value)) return true;
    return Object.values(value).some(within);
  };
  return within(value);
}

function isEach(value: object): value is { readonly each: readonly Json[] } {
  return "each" in value && Array.isArray(value.each) &&
    Object.keys(value).length === 1;
}

/** The part of a repeat for one value of its variable. */
function partOf({ repeat: name, from, body }: Repeat, at: number): Json[] {
  const { inText, alone } = variableOf(name);
  const valueOf = ({ step, first }: Linear) => step * at + first;
  const expand = (value: Json): Json => {
    if (typeof value === "string") {
      const number = alone.exec(value);
      if (number) return valueOf(linear(number[1], number[2]));
      return value.includes("{")
        ? value.replace(
          inText,
          (_, step?: string, first?: string) =>
            String(valueOf(linear(step, first))),
        )
        : value;
    }
    if (typeof value !== "object" || value === null) return value;
    if (Array.isArray(value)) return value.map(expand);
    if (isEach(value)) return value.each[at - from] ?? null;
    return Object.fromEntries(
      Object.entries(value).map(([key, item]) => [key, expand(item)]),
    );
  };
  return body.map(expand);
}

/** All parts of a list. Throws a PlanError if there are more than in any plan. */
export function expandRepeats(list: readonly Json[], what: string): Json[] {
  const length = list.reduce<number>(
    (n, item) =>
      n +
      (isRepeat(item)
        ? Math.max(0, item.to - item.from + 1) * item.body.length
        : 1),
    0,
  );
  // The negation also rejects NaN.
  if (!(length <= MAX_ITEMS)) {
    throw new PlanError(
      `Cannot read the plan: it has ${length} ${what}, and ${MAX_ITEMS} are allowed. Compile it again`,
    );
  }
  return list.flatMap((item) => {
    if (!isRepeat(item)) return [item];
    const parts: Json[] = [];
    for (let at = item.from; at <= item.to; at++) {
      parts.push(...partOf(item, at));
    }
    return parts;
  });
}
