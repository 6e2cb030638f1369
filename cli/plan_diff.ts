/** The differences between two plans by meaning. Columns and the numbers of steps and allocations do not count. */

import type { Summarized } from "../engine/mod.ts";
import { formatPlan } from "../spec/mod.ts";
import { sentPerToken, sideBySide } from "../view/mod.ts";
import { formatTable } from "./table.ts";
import { formatSummary } from "./summary_text.ts";

/** Formats the figures of two plans in two columns. Rows that differ begin with `*`. */
export async function comparePlans(
  a: Summarized & { readonly name: string },
  b: Summarized & { readonly name: string },
): Promise<string> {
  const [mine, other] = await Promise.all([a, b].map(async (one) => ({
    summary: one.summary,
    sent: sentPerToken(await one.plan()),
  })));
  const rows = sideBySide(mine!, other!).map(([what, ...values]) => [
    `${values[0] === values[1] ? " " : "*"} ${what}`,
    ...values,
  ]);
  const table = formatTable([["", a.name, b.name], ...rows]);
  return `${table.map((line) => line.trimEnd()).join("\n")}\n`;
}

/** Lists the lines that only one of two plans has, under their sections. Lines of the second plan begin with `+`. */
export async function diffPlans(
  a: Summarized,
  b: Summarized,
): Promise<string> {
  const before = await sectionsOf(a);
  const after = await sectionsOf(b);
  const titles = [...new Set([...before.keys(), ...after.keys()])];
  const parts = titles.flatMap((title) => {
    const changed = diffLines(before.get(title) ?? [], after.get(title) ?? []);
    return changed.length === 0 ? [] : [title, ...changed, ""];
  });
  return parts.length === 0
    ? "the plans are the same\n"
    : `${parts.join("\n").trimEnd()}\n`;
}

/** Returns sections by title. Each is a list of lines without references to the rest of the plan. */
async function sectionsOf(
  { plan, summary }: Summarized,
): Promise<Map<string, string[]>> {
  const sections = new Map<string, string[]>();
  const add = (title: string, line: string) =>
    sections.set(title, [...sections.get(title) ?? [], line]);
  for (const line of formatSummary(summary).split("\n")) {
    if (line !== "") add("summary", `  ${squeeze(line)}`);
  }
  let title = "plan";
  for (const line of formatPlan(await plan()).split("\n")) {
    if (/^\S/.test(line)) title = line.replace(/ \(.*\)$/, "");
    else if (line.trim() !== "") add(title, `  ${squeeze(line)}`);
  }
  return sections;
}

function squeeze(line: string): string {
  return line.trim()
    .replace(/ {2,}/g, "  ")
    .replace(/^%\d+ /, "")
    .replace(/ {2}allocation \d+.*$/, "")
    .replace(/\[\d+\]( {2}(?:counts|dispatch|combine))/, "$1");
}

/**
 * Returns the lines of `a` missing in `b` and of `b` missing in `a`, in order. They are the complement of a longest
 * common subsequence.
 */
function diffLines(a: readonly string[], b: readonly string[]): string[] {
  let start = 0;
  while (start < Math.min(a.length, b.length) && a[start] === b[start]) start++;
  let end = 0;
  while (
    end < Math.min(a.length, b.length) - start &&
    a[a.length - 1 - end] === b[b.length - 1 - end]
  ) end++;
  const left = a.slice(start, a.length - end);
  const right = b.slice(start, b.length - end);
  const width = right.length + 1;
  // common[i * width + j]: length of the longest common subsequence of left from i and right from j.
  const common = new Uint32Array((left.length + 1) * width);
  for (let i = left.length - 1; i >= 0; i--) {
    for (let j = right.length - 1; j >= 0; j--) {
      common[i * width + j] = left[i] === right[j]
        ? common[(i + 1) * width + j + 1]! + 1
        : Math.max(common[(i + 1) * width + j]!, common[i * width + j + 1]!);
    }
  }
  const lines: string[] = [];
  let i = 0, j = 0;
  while (i < left.length || j < right.length) {
    if (i < left.length && j < right.length && left[i] === right[j]) i++, j++;
    else if (
      j >= right.length ||
      i < left.length &&
        common[(i + 1) * width + j]! >= common[i * width + j + 1]!
    ) lines.push(`-${left[i++]!.slice(1)}`);
    else lines.push(`+${right[j++]!.slice(1)}`);
  }
  return lines;
}
