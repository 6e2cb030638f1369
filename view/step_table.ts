/**
 * The steps of a program as table rows with time, bytes, FLOPs and the fraction of the roofline bound, for sorting and
 * filtering.
 */

import { layerOf } from "../spec/plan/layers.ts";
import type { PhaseCosts } from "../spec/plan_summary.ts";
import type { PlanView, ProgramView } from "./plan_view.ts";
import { type Role, ROLE_NAMES } from "./roles.ts";
import { nameOfStep } from "./step_detail.ts";
import type { TimedRun } from "./time.ts";
import type { TimeWindow } from "./pictures/time.ts";

/** A step. Unknown numbers are undefined. */
export interface StepRow {
  readonly index: number;
  readonly name: string;
  /** Its kernel, or the mesh axes of its communication. */
  readonly how: string;
  readonly layer: number | undefined;
  readonly kind: Role;
  /** Microseconds, as the mean over ranks or of the first predicted rank. */
  readonly time: number | undefined;
  /** Its time range. */
  readonly span: TimeWindow | undefined;
  readonly bytes: number | undefined;
  readonly flops: number | undefined;
  /** Minimum microseconds according to the roofline. */
  readonly bound: number | undefined;
  /** `bound` divided by `time`. */
  readonly share: number | undefined;
}

/** The sort keys of a table. */
export type StepKey =
  | "index"
  | "name"
  | "layer"
  | "kind"
  | "time"
  | "bytes"
  | "flops"
  | "share";

/** Returns the costs of a run: those of its phase, or of the same number of tokens, otherwise the first ones. */
export function costsOf(
  costs: readonly PhaseCosts[],
  run: TimedRun | undefined,
): { readonly costs: PhaseCosts | undefined; readonly same: boolean } {
  const found = costs.find(({ phase, tokens }) =>
    run?.phase === undefined ? tokens === run?.tokens : phase === run.phase
  );
  return { costs: found ?? costs[0], same: found !== undefined };
}

/** Returns the rows of a program. Only the first program has costs. */
export function stepRows(
  view: PlanView,
  program: ProgramView,
  { run, costs }: {
    readonly run: TimedRun | undefined;
    readonly costs: readonly PhaseCosts[];
  },
): StepRow[] {
  const ofRun = run?.program === program.program.name ? run : undefined;
  const times = ofRun ? timesOf(ofRun, view.plan.ranks) : new Map();
  const known = costsOf(costs, ofRun);
  const first = program === view.programs[0];
  const cost = new Map(
    (first ? known.costs?.steps ?? [] : []).map((of) => [of[0], of]),
  );
  return program.steps.map((at): StepRow => {
    const { step, index } = at;
    const [, bytes, flops, bound] = cost.get(index) ?? [];
    const timed = times.get(index);
    return {
      index,
      name: nameOfStep(at),
      how: step.op === "launch"
        ? step.kernel
        : step.op === "allToAll" || step.op === "allGather"
        ? `over ${step.over.join(", ")}`
        : "",
      layer: layerOf(step.block ?? ""),
      kind: program.roles[index]!,
      time: timed?.time,
      span: timed?.span,
      bytes,
      flops,
      bound,
      share: known.same && bound !== undefined && timed?.time > 0
        ? bound / timed.time
        : undefined,
    };
  });
}

interface StepTime {
  readonly time: number;
  readonly span: TimeWindow;
}

function timesOf(
  { events, predicted }: TimedRun,
  ranks: number,
): Map<number, StepTime> {
  const times = new Map<number, StepTime>();
  for (const { step, rank, start, duration } of events) {
    if (step === undefined) continue;
    if (predicted && rank !== events[0]!.rank) continue;
    const end = start + duration;
    const { time, span: [from, to] } = times.get(step) ??
      { time: 0, span: [start, end] as const };
    times.set(step, {
      time: time + (predicted ? duration : duration / ranks),
      span: [Math.min(from, start), Math.max(to, end)],
    });
  }
  return times;
}

/** The conditions for rows. */
export interface StepFilter {
  /** Words; each must be in the name, the kernel or the kind. */
  readonly words: string;
  readonly kind: Role | undefined;
  readonly layer: number | undefined;
  /** A time range that rows must overlap. */
  readonly range: TimeWindow | undefined;
}

/** Tolerance in microseconds between the end of a step and the start of the next. Times are rounded to nanoseconds. */
const ROUNDED = 0.002;

/** Returns the rows that match a filter. */
export function filterRows(
  rows: readonly StepRow[],
  { words, kind, layer, range }: StepFilter,
): StepRow[] {
  const wanted = words.toLowerCase().split(/\s+/).filter((w) => w !== "");
  return rows.filter((row) => {
    if (kind !== undefined && row.kind !== kind) return false;
    if (layer !== undefined && row.layer !== layer) return false;
    if (range) {
      const { span } = row;
      if (!span) return false;
      const overlap = Math.min(span[1], range[1]) - Math.max(span[0], range[0]);
      if (overlap <= ROUNDED) return false;
    }
    const text = `${row.name} ${row.how} ${ROLE_NAMES[row.kind]}`.toLowerCase();
    return wanted.every((word) => text.includes(word));
  });
}

/** Sorts rows by a column. Rows without a value are last. */
export function sortRows(
  rows: readonly StepRow[],
  { by, descending }: { readonly by: StepKey; readonly descending: boolean },
): StepRow[] {
  const sign = descending ? -1 : 1;
  return rows.toSorted((a, b) => {
    const [x, y] = [a[by], b[by]];
    if (x === y) return a.index - b.index;
    if (x === undefined) return 1;
    if (y === undefined) return -1;
    return sign * (x < y ? -1 : 1);
  });
}

/** Sums of rows. The fraction covers only rows with a known one. */
export interface StepSums {
  readonly time: number;
  readonly bytes: number;
  readonly flops: number;
  readonly share: number | undefined;
}

/** Adds up rows. */
export function sumRows(rows: readonly StepRow[]): StepSums {
  const of = (key: "time" | "bytes" | "flops" | "bound", of = rows) =>
    of.reduce((sum, row) => sum + (row[key] ?? 0), 0);
  const shared = rows.filter(({ share }) => share !== undefined);
  return {
    time: of("time"),
    bytes: of("bytes"),
    flops: of("flops"),
    share: shared.length === 0
      ? undefined
      : of("bound", shared) / of("time", shared),
  };
}

/** Formats a number with a decimal prefix, such as `1.34 G`. */
export function scaledText(n: number, prefixes: readonly string[]): string {
  let value = n;
  let at = 0;
  for (; value >= 1000 && at < prefixes.length - 1; at++) value /= 1000;
  return `${at === 0 ? value : value.toFixed(2)}${prefixes[at]}`;
}

/** Prefixes of FLOPs. */
export const SI: readonly string[] = ["", " k", " M", " G", " T", " P"];
