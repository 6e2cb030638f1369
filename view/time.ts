/** A recorded run: what each rank did when, by what it was for. */

import { traceName } from "../spec/text/parts.ts";
import { layerOf } from "../spec/plan/layers.ts";
import { isCollective } from "../spec/plan/facts.ts";
import type { PredictedTimeline } from "../spec/plan_summary.ts";
import type { TraceEvent } from "./page_data.ts";
import type { ProgramView } from "./plan_view.ts";
import type { Role } from "./roles.ts";

/** Something that a rank did. Times in microseconds from the start of the run. */
export interface Timed {
  readonly rank: number;
  readonly name: string;
  readonly role: Role;
  readonly start: number;
  readonly duration: number;
  /** The layer of its step, where that has a number. */
  readonly layer?: number | undefined;
  /** The step of an exchange that is predicted, which begins on all ranks at once. */
  readonly exchange?: number | undefined;
}

/** A run of a program that was recorded, or is predicted. */
export interface TimedRun {
  readonly name: string;
  /** Nothing was run. */
  readonly predicted: boolean;
  readonly microseconds: number;
  readonly events: readonly Timed[];
  /** What is said of each rank that there are events of. Default: its number. */
  readonly lanes?: ReadonlyMap<number, string>;
}

/** What people call the steps that are predicted. */
const PHASES: { readonly [P in PredictedTimeline["phase"]]: string } = {
  prefill: "prefill",
  decode: "decoding",
  train: "training",
  step: "a step",
};

/** Predicted steps of the first program. */
export function predictedRuns(
  predicted: readonly PredictedTimeline[],
  [program]: readonly ProgramView[],
): TimedRun[] {
  return predicted.map(({ phase, tokens, microseconds, lanes }) => ({
    name: `${PHASES[phase]} of ${tokens.toLocaleString("en")} ${
      tokens === 1 ? "token" : "tokens"
    }`,
    predicted: true,
    microseconds,
    events: lanes.flatMap(({ rank, steps }) =>
      steps.map(([index, start, duration]): Timed => ({
        rank,
        start,
        duration,
        role: program!.roles[index]!,
        name: `${index}. ${traceName(program!.steps[index]!.step)}`,
        layer: layerOf(program!.steps[index]!.step.block ?? ""),
        exchange: isCollective(program!.steps[index]!.step) ? index : undefined,
      }))
    ),
    lanes: new Map(
      lanes.map(({ rank, count }) => [
        rank,
        count === 1 ? `rank ${rank}` : `${count} ranks`,
      ]),
    ),
  }));
}

/** The runs of a trace, in order. */
export function runsOf(
  trace: readonly TraceEvent[],
  programs: readonly ProgramView[],
): TimedRun[] {
  // By name and, for the trace of the same model on another mesh, by kernel.
  const roles = new Map<string, Role>();
  const layers = new Map<string, number | undefined>();
  for (const { steps, roles: of } of programs) {
    for (const { step, index } of steps) {
      layers.set(traceName(step), layerOf(step.block ?? ""));
      const kernel = step.op === "launch" ? [step.kernel] : [];
      for (const key of [traceName(step), ...kernel]) {
        if (!roles.has(key)) roles.set(key, of[index]!);
      }
    }
  }
  const timed = trace.filter(({ ph, cat }) => ph === "X" && cat !== "wait");
  // The row before that of rank 0 holds whole runs, in each process the same.
  const runs = timed.filter(({ tid }) => tid === 0);
  return runs.filter(({ pid }) => pid === runs[0]!.pid).map((run) => {
    const { name, ts: start, dur: microseconds = 0 } = run;
    const events = timed.filter(({ tid, ts }) =>
      tid > 0 && ts >= start && ts <= start + microseconds
    ).map(({ tid, name, ts, dur = 0, args }): Timed => ({
      rank: tid - 1,
      name,
      start: ts - start,
      duration: dur,
      layer: layers.get(name),
      role: opOfPart(args) ?? roles.get(name) ??
        roles.get(`${args["kernel"]}`) ?? "dense",
    }));
    return { name, predicted: false, microseconds, events };
  });
}

function opOfPart({ op }: TraceEvent["args"]): Role | undefined {
  return op === "dispatch" || op === "combine" ? op : undefined;
}

/** The part of a run between two times. */
export function partOf(
  run: TimedRun,
  [from, to]: readonly [from: number, to: number],
): TimedRun {
  return {
    ...run,
    microseconds: to - from,
    events: run.events.flatMap((event) => {
      const start = Math.max(from, event.start);
      const end = Math.min(to, event.start + event.duration);
      return end <= start ? [] : [{
        ...event,
        start: start - from,
        duration: end - start,
      }];
    }),
  };
}

/** Microseconds by what they are for, of a mean rank or of the first that is predicted, largest first. */
export function timeByRole(
  { events, predicted }: TimedRun,
  ranks: number,
): (readonly [role: Role, microseconds: number])[] {
  const sums = new Map<Role, number>();
  for (const { rank, role, duration } of events) {
    if (predicted && rank !== events[0]!.rank) continue;
    const share = predicted ? duration : duration / ranks;
    sums.set(role, (sums.get(role) ?? 0) + share);
  }
  return [...sums].sort((a, b) => b[1] - a[1]);
}

/**
 * What the end of a predicted run waits for, in order: from what ends last back to the start, on the same rank, and at an
 * exchange on the rank that comes to it last.
 */
export function criticalPath({ events }: Pick<TimedRun, "events">): Timed[] {
  const before = new Map<Timed, Timed>();
  const last = new Map<number, Timed>();
  const exchanges = new Map<number, Timed[]>();
  for (const event of events.toSorted((a, b) => a.start - b.start)) {
    const { rank, exchange } = event;
    const previous = last.get(rank);
    if (previous) before.set(event, previous);
    last.set(rank, event);
    if (exchange === undefined) continue;
    const of = exchanges.get(exchange) ?? [];
    exchanges.set(exchange, of);
    of.push(event);
  }
  const path: Timed[] = [];
  let at = latest([...last.values()]);
  while (at) {
    path.push(at);
    const { exchange } = at;
    const of = exchange === undefined ? [at] : exchanges.get(exchange)!;
    at = latest(of.flatMap((one) => before.get(one) ?? []));
  }
  return path.reverse();
}

/** What ends last. */
function latest(events: readonly Timed[]): Timed | undefined {
  return events.toSorted((a, b) =>
    b.start + b.duration - a.start - a.duration
  )[0];
}

/** `1.24 ms` */
export function durationText(microseconds: number): string {
  return microseconds >= 1e6
    ? `${(microseconds / 1e6).toFixed(2)} s`
    : microseconds >= 1e3
    ? `${(microseconds / 1e3).toFixed(2)} ms`
    : `${microseconds.toFixed(0)} µs`;
}
