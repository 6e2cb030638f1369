/** Parts of a plan's text: tables, numbers, buffer types, source positions. */

import type { Span } from "../errors.ts";
import { perRankText } from "../per_rank.ts";
import { oneLine } from "../shown.ts";
import { findRepeats } from "../document/find_repeats.ts";
import { isRepeat, type Repeat } from "../document/repeat.ts";
import {
  type BufferAxis,
  type Plan,
  type PlanAxis,
  type PlanBuffer,
  type Step,
} from "../plan/plan.ts";

/** Rows with aligned columns; numbers (`1,234`) to the right, the last column not padded. */
export function alignRows(
  rows: readonly (readonly string[])[],
  indent = "  ",
): string[] {
  const widths: number[] = [];
  for (const row of rows) {
    for (const [i, cell] of row.entries()) {
      widths[i] = Math.max(widths[i] ?? 0, cell.length);
    }
  }
  return rows.map((row) =>
    (indent + row.map((cell, i) => {
      if (/^[\d,]+( B)?$/.test(cell)) return cell.padStart(widths[i]!);
      return i === row.length - 1 ? cell : cell.padEnd(widths[i]!);
    }).join("  ")).trimEnd()
  );
}

/** `repeat layer 3..60 {`, after the prefix of its first part. */
function repeatHead({ repeat, from, to }: Repeat, indent: string): string {
  return `${indent}repeat ${repeat} ${from}..${to} {`;
}

/** Rows like those of `alignRows`, with repetition written once. */
export function repeatRows(rows: readonly (readonly string[])[]): string[] {
  const found = findRepeats(rows) as readonly (Repeat | readonly string[])[];
  const bodyOf = (item: Repeat | readonly string[]) =>
    isRepeat(item) ? item.body as readonly (readonly string[])[] : [item];
  const lines = alignRows(found.flatMap(bodyOf));
  return found.flatMap((item) => {
    const body = lines.splice(0, bodyOf(item).length);
    return isRepeat(item)
      ? [
        repeatHead(item, "  "),
        ...body.map((line) => `  ${line}`),
        "  }",
      ]
      : body;
  });
}

/**
 * Merges rows of a table that differ only in one number in their names, which increases by one:
 * `layers.{0..3}.moe.ffn`.
 */
export function mergeRows(
  rows: readonly (readonly string[])[],
): (readonly string[])[] {
  const groups: Numbered[] = [];
  const last = new Map<string, Numbered>();
  for (const [name = "", ...rest] of rows) {
    const numbers = [...name.matchAll(/(?<=\.)\d+(?=[./])/g)]
      .map(([digits]) => Number(digits));
    const key = JSON.stringify([
      name.replace(/(?<=\.)\d+(?=[./])/g, "#"),
      rest,
    ]);
    const before = numbers.length === 1 ? last.get(key) : undefined;
    if (before && numbers[0] === before.to + 1) {
      before.to++;
      continue;
    }
    const from = numbers[0] ?? 0;
    const group = { name, rest, from, to: from };
    groups.push(group);
    last.set(key, group);
  }
  return groups.map(({ name, rest, from, to }) => [
    from === to ? name : name.replace(/(?<=\.)\d+(?=[./])/, `{${from}..${to}}`),
    ...rest,
  ]);
}

/** A row, and the numbers of its name. */
interface Numbered {
  readonly name: string;
  readonly rest: readonly string[];
  readonly from: number;
  to: number;
}

/** Lines of steps with repetition written once; `%12` there is the number of the step in the first part. */
export function repeatLines(lines: readonly string[]): string[] {
  const found = findRepeats(lines) as readonly (Repeat | string)[];
  return found.flatMap((item) =>
    isRepeat(item)
      ? [
        repeatHead(item, "  "),
        ...firstNumbers(item).map((line) => `  ${line}`),
        "  }",
      ]
      : [item]
  );
}

function firstNumbers({ repeat, from, body }: Repeat): string[] {
  const number = new RegExp(`%\\{(?:(\\d+)\\*)?${repeat}([+-]\\d+)?\\}`, "g");
  return (body as readonly string[]).map((line) =>
    line.replace(
      number,
      (_, step = "1", first = "0") => `%${Number(step) * from + Number(first)}`,
    )
  );
}

/** `over dp+ep`, or empty for a replicated axis. */
export function overText(over: readonly string[] | undefined): string {
  return over && over.length > 0 ? over.join("+") : "";
}

function known(plan: Plan, axis: string): PlanAxis | undefined {
  return Object.hasOwn(plan.axes, axis) ? plan.axes[axis] : undefined;
}

/** `token/dp+ep<=4096`, `expert/ep:2`, `embed:512`. */
function axisText(plan: Plan, axis: BufferAxis): string {
  const entry = known(plan, axis.axis);
  const size = perRankText(axis.size).replaceAll(",", "");
  if (!axis.dynamic) return `${axis.axis}:${size}`;
  return `${axis.axis}<=${entry ? entry.size : size}`;
}

/** `f32[expert/ep:2 embed:512]`, `f32[embed:512]{unreduced:dp+ep}` */
export function typeText(plan: Plan, buffer: PlanBuffer): string {
  const axes = buffer.axes.map((axis) => axisText(plan, axis)).join(" ");
  const padded = buffer.rowStride === undefined
    ? ""
    : ` row stride ${buffer.rowStride}`;
  const unreduced = buffer.unreduced
    ? `{unreduced:${overText(buffer.unreduced)}}`
    : "";
  return `${buffer.dtype}[${axes}]${unreduced}${padded}`;
}

/** `0 1 2 5`; more than eight in a row as `0..31`. */
export function idsText(ids: readonly number[]): string {
  const words: string[] = [];
  for (let i = 0; i < ids.length;) {
    let end = i + 1;
    while (end < ids.length && ids[end] === ids[end - 1]! + 1) end++;
    if (end - i > 8) words.push(`${ids[i]}..${ids[end - 1]}`);
    else words.push(...ids.slice(i, end).map(String));
    i = end;
  }
  return words.join(" ");
}

/** The type of a dispatched value: the rows of a buffer as `expert/ep slot`. */
export function dispatchedType(
  plan: Plan,
  buffer: PlanBuffer,
  expert: string | undefined,
): string {
  const entry = expert === undefined ? undefined : known(plan, expert);
  const rows = entry ? `${expert}:${entry.size} slot` : "expert slot";
  const rest = buffer.axes.slice(1).map((axis) => axisText(plan, axis));
  return `${buffer.dtype}[${[rows, ...rest].join(" ")}]`;
}

/** A source position, `layer.ts:9:16`. */
export function spanText({ file, line, column }: Span): string {
  return oneLine(`${file}:${line}:${column}`);
}

/** The name of a step in traces and tables: `layers.3.moe.dispatch:permute`. */
export function traceName(step: Step): string {
  const { block, label = "", part } = step;
  const [chunk = ""] = /, chunk \d+ of \d+$/.exec(label) ?? [];
  const what = part
    ? `${part.op}:${part.part}${chunk}`
    : step.label ?? (step.op === "launch" ? step.kernel : step.op);
  return block ? `${block}.${what}` : what;
}
