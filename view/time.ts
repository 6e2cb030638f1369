/** A recorded run: the work of each rank over time, by role. */

import { traceName } from "../spec/text/parts.ts";
import { layerOf } from "../spec/plan/layers.ts";
import { isCollective } from "../spec/plan/members.ts";
import type { Phase, PredictedTimeline } from "../spec/plan_summary.ts";
import { rateText } from "../spec/time_text.ts";
import type { TraceEvent } from "./page_data.ts";
import { lateBy, type Pause, pausesOf } from "./pauses.ts";
import type { ProgramView } from "./plan_view.ts";
import type { Role } from "./roles.ts";

/** An event on a rank. Times are in microseconds from the start of the run. */
export interface Timed {
  readonly rank: number;
  readonly name: string;
  readonly role: Role;
  readonly start: number;
  readonly duration: number;
  /** The number of its step's layer, if there is one. */
  readonly layer?: number | undefined;
  /** Index of its step in the plan, if known. */
  readonly step?: number | undefined;
  /** The step of a predicted exchange, which begins on all ranks at the same time. */
  readonly exchange?: number | undefined;
}

/** A recorded or predicted run of a program. */
export interface TimedRun {
  readonly name: string;
  /** The program of the run and its tokens over all ranks, if known. */
  readonly program: string;
  readonly tokens?: number | undefined;
  /** The predicted phase. Undefined for a recorded run. */
  readonly phase?: Phase;
  /** The run is a prediction. */
  readonly predicted: boolean;
  readonly microseconds: number;
  readonly events: readonly Timed[];
  /** The waiting times of ranks. Time without an event or pause belongs to the host. */
  readonly pauses: readonly Pause[];
  /** Label of each rank with events. Default: its number. */
  readonly lanes?: ReadonlyMap<number, string>;
}

/** Display names of predicted phases. */
const PHASES: { readonly [P in PredictedTimeline["phase"]]: string } = {
  prefill: "prefill",
  decode: "decoding",
  train: "training",
  step: "a step",
};

/** Formats a phase: `prefill of 512 tokens`. */
export function phaseText(
  { phase, tokens }: Pick<PredictedTimeline, "phase" | "tokens">,
): string {
  return `${PHASES[phase]} of ${tokens.toLocaleString("en")} ${
    tokens === 1 ? "token" : "tokens"
  }`;
}

/** Formats the throughput of concurrent steps: `, 149.5 tokens/s with 4 steps in flight`. */
function inFlightText(
  { inFlight, tokensPerSecond = 0 }: Pick<
    PredictedTimeline,
    "inFlight" | "tokensPerSecond"
  >,
): string {
  return inFlight === undefined
    ? ""
    : `, ${rateText(tokensPerSecond)} with ${inFlight} steps in flight`;
}

/** Returns the predicted phases of the first program. */
export function predictedRuns(
  predicted: readonly PredictedTimeline[],
  [program]: readonly ProgramView[],
): TimedRun[] {
  return predicted.map(({ phase, tokens, microseconds, lanes, ...rest }) => ({
    phase,
    tokens,
    program: program!.program.name,
    name: phaseText({ phase, tokens }) + inFlightText(rest),
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

/** Returns the runs of a trace in order. */
export function runsOf(
  trace: readonly TraceEvent[],
  programs: readonly ProgramView[],
): TimedRun[] {
  // Roles by name. For a trace of the same model on another mesh, also by kernel.
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
  // The row before that of rank 0 contains complete runs, the same in each process.
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

/** Returns the number of tokens of a run, if its trace contains the rank of each token. */
function tokensOf({ args }: TraceEvent): number | undefined {
  const ranks = args["rank of each token"];
  return ranks === undefined || ranks === ""
    ? undefined
    : `${ranks}`.split(" ").length;
}

function opOfPart({ op }: TraceEvent["args"]): Role | undefined {
  return op === "dispatch" || op === "combine" ? op : undefined;
}

/** Returns the part of a run between two times. */
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

/** Returns the start and end of each layer on the first rank, in order. */
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

/** Returns microseconds by role, largest first, as the mean over ranks or of the first predicted rank. */
export function timeByRole(
  run: Pick<TimedRun, "events" | "predicted">,
  ranks: number,
): (readonly [role: Role, microseconds: number])[] {
  return sums(run, ranks, run.events.map((of) => [of.role, of] as const));
}

/** Returns microseconds of waiting by reason, in the same way as `timeByRole`. */
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
 * Returns the critical path of a predicted run in order. It is followed backwards from the last event: on the same
 * rank, and at an exchange on the rank that reaches it last.
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

/** Returns the event that ends last. */
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
