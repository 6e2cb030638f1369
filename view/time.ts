/** A recorded run: what each rank did when, by what it was for. */

import { traceName } from "../spec/text/parts.ts";
import { layerOf } from "../spec/plan/layers.ts";
import { isCollective } from "../spec/plan/facts.ts";
import type { Phase, PredictedTimeline } from "../spec/plan_summary.ts";
import type { TraceEvent } from "./page_data.ts";
import { lateBy, type Pause, pausesOf } from "./pauses.ts";
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
  /** Index of its step in the plan, where that is known. */
  readonly step?: number | undefined;
  /** The step of an exchange that is predicted, which begins on all ranks at once. */
  readonly exchange?: number | undefined;
}

/** A run of a program that was recorded, or is predicted. */
export interface TimedRun {
  readonly name: string;
  /** The program that ran, and its tokens over all ranks, where they are known. */
  readonly program: string;
  readonly tokens?: number | undefined;
  /** The step that is predicted; undefined of a recorded run. */
  readonly phase?: Phase;
  /** Nothing was run. */
  readonly predicted: boolean;
  readonly microseconds: number;
  readonly events: readonly Timed[];
  /** When ranks wait. What is no event and no pause is the host's time. */
  readonly pauses: readonly Pause[];
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

/** `prefill of 512 tokens` */
export function phaseText(
  { phase, tokens }: Pick<PredictedTimeline, "phase" | "tokens">,
): string {
  return `${PHASES[phase]} of ${tokens.toLocaleString("en")} ${
    tokens === 1 ? "token" : "tokens"
  }`;
}

/** Predicted steps of the first program. */
export function predictedRuns(
  predicted: readonly PredictedTimeline[],
  [program]: readonly ProgramView[],
): TimedRun[] {
  return predicted.map(({ phase, tokens, microseconds, lanes }) => ({
    phase,
    tokens,
    program: program!.program.name,
    name: phaseText({ phase, tokens }),
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
        step: index,
        exchange: isCollective(program!.steps[index]!.step) ? index : undefined,
      }))
    ),
    pauses: lanes.flatMap(({ rank, waits }) =>
      waits.map(([, start, duration]): Pause => ({
        rank,
        start,
        duration,
        reason: "late",
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
  const timed = trace.filter(({ ph }) => ph === "X");
  // The row before that of rank 0 holds whole runs, in each process the same.
  const runs = timed.filter(({ tid }) => tid === 0);
  return runs.filter(({ pid }) => pid === runs[0]!.pid).map((run) => {
    const { name: program, ts: start, dur: microseconds = 0 } = run;
    const steps = programs.find((of) => of.program.name === program)?.steps;
    const during = timed.filter(({ tid, ts }) =>
      tid > 0 && ts >= start && ts <= start + microseconds
    );
    const late = lateBy(during);
    const events = during.filter(({ cat }) => cat !== "wait").map(
      (event): Timed => {
        const { tid, name, ts, dur = 0, args } = event;
        const at = steps?.[Number(args["step"])]?.step;
        const waited = late.get(event) ?? 0;
        return {
          rank: tid - 1,
          name,
          start: ts - start + waited,
          duration: dur - waited,
          step: at && traceName(at) === name ? Number(args["step"]) : undefined,
          layer: at ? layerOf(at.block ?? "") : layers.get(name),
          role: opOfPart(args) ?? roles.get(name) ??
            roles.get(`${args["kernel"]}`) ?? "dense",
        };
      },
    );
    return {
      name: program,
      program,
      tokens: tokensOf(run),
      predicted: false,
      microseconds,
      events,
      pauses: pausesOf(during, { start, late }),
    };
  });
}

/** Tokens of a run, where its trace says on which rank each was. */
function tokensOf({ args }: TraceEvent): number | undefined {
  const ranks = args["rank of each token"];
  return ranks === undefined || ranks === ""
    ? undefined
    : `${ranks}`.split(" ").length;
}

function opOfPart({ op }: TraceEvent["args"]): Role | undefined {
  return op === "dispatch" || op === "combine" ? op : undefined;
}

/** The part of a run between two times. */
export function partOf(
  run: TimedRun,
  [from, to]: readonly [from: number, to: number],
): TimedRun {
  const inside = <T extends { start: number; duration: number }>(of: T) => {
    const start = Math.max(from, of.start);
    const end = Math.min(to, of.start + of.duration);
    if (end <= start) return [];
    return [{ ...of, start: start - from, duration: end - start }];
  };
  return {
    ...run,
    microseconds: to - from,
    events: run.events.flatMap(inside),
    pauses: run.pauses.flatMap(inside),
  };
}

/** When each layer begins and ends on the first rank, in order. */
export function layerTimes(
  { events }: Pick<TimedRun, "events">,
): (readonly [layer: number, time: readonly [from: number, to: number]])[] {
  const rank = events[0]?.rank;
  const times = new Map<number, readonly [number, number]>();
  for (const { rank: of, layer, start, duration } of events) {
    if (of !== rank || layer === undefined) continue;
    const [from, to] = times.get(layer) ?? [start, start];
    times.set(layer, [Math.min(from, start), Math.max(to, start + duration)]);
  }
  return [...times].sort((a, b) => a[1][0] - b[1][0]);
}

/** Microseconds by what they are for, of a mean rank or of the first that is predicted, largest first. */
export function timeByRole(
  run: Pick<TimedRun, "events" | "predicted">,
  ranks: number,
): (readonly [role: Role, microseconds: number])[] {
  return sums(run, ranks, run.events.map((of) => [of.role, of] as const));
}

/** Microseconds of waiting by reason, as `timeByRole`. */
export function timeByReason(
  run: Pick<TimedRun, "events" | "pauses" | "predicted">,
  ranks: number,
): (readonly [reason: Pause["reason"], microseconds: number])[] {
  return sums(run, ranks, run.pauses.map((of) => [of.reason, of] as const));
}

function sums<K>(
  { events, predicted }: Pick<TimedRun, "events" | "predicted">,
  ranks: number,
  timed: readonly (readonly [K, Pick<Timed, "rank" | "duration">])[],
): (readonly [K, number])[] {
  const found = new Map<K, number>();
  for (const [key, { rank, duration }] of timed) {
    if (predicted && rank !== events[0]?.rank) continue;
    const share = predicted ? duration : duration / ranks;
    found.set(key, (found.get(key) ?? 0) + share);
  }
  return [...found].sort((a, b) => b[1] - a[1]);
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
    : `${
      microseconds.toFixed(microseconds > 0 && microseconds < 100 ? 1 : 0)
    } µs`;
}
