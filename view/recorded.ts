/** What recorded runs say of tokens and exchanges: the rank of each token, and what went from rank to rank. */

import { traceName } from "../spec/text/parts.ts";
import type { Program, Step } from "../spec/plan/plan.ts";
import type { TraceEvent } from "./page_data.ts";

/** Bytes that a step sent, all recorded runs together. */
export interface Measured {
  /** By all ranks. */
  readonly total: number;
  readonly between: (from: number, to: number) => number;
}

/** All runs of a program in a trace. */
export interface Recorded {
  /** The rank that each item of an axis was on, run after run; empty where the trace does not say. */
  sourceRanks(axis: string): readonly number[];
  /** What a step sent; undefined where none of that name was recorded at its place. */
  sent(step: Step, index: number): Measured | undefined;
}

/**
 * The runs of a program, as far as the trace is of the same model on the same mesh: steps are found by their names, as on
 * another device launches may be merged otherwise, so that places differ.
 */
export function recordedOf(
  trace: readonly TraceEvent[],
  { name: program, steps }: Program,
): Recorded {
  const all = trace.filter(({ ph }) => ph === "X");
  const wholes = all.filter(({ tid }) => tid === 0);
  // In each process the same runs.
  const runs = wholes.filter(({ pid, name }) =>
    pid === wholes[0]!.pid && name === program
  );
  // Clocks of processes differ, so that time tells runs apart only where it must.
  const alone = wholes.every(({ name }) => name === program);
  const during = all.filter(({ tid, ts }) =>
    tid > 0 &&
    (alone ||
      runs.some(({ ts: start, dur = 0 }) => ts >= start && ts <= start + dur))
  );
  // Name -> place in the recorded plan -> what was sent there.
  const exchanges = new Map<string, Map<number, TraceEvent[]>>();
  for (const event of during) {
    const { step, sentTo } = event.args;
    if (sentTo === undefined) continue;
    const places = exchanges.get(event.name) ?? new Map<number, TraceEvent[]>();
    exchanges.set(event.name, places);
    const place = places.get(Number(step)) ?? [];
    places.set(Number(step), place);
    place.push(event);
  }
  return {
    sourceRanks: (axis) =>
      runs.flatMap(({ args }) => {
        const ranks = args[`rank of each ${axis}`];
        return ranks === undefined || ranks === ""
          ? []
          : `${ranks}`.split(" ").map(Number);
      }),
    sent(step, index) {
      const name = traceName(step);
      const places = exchanges.get(name);
      const before =
        steps.slice(0, index).filter((other) => traceName(other) === name)
          .length;
      const place = [...places?.keys() ?? []].sort((a, b) => a - b)[before];
      return place === undefined ? undefined : measuredOf(places!.get(place)!);
    },
  };
}

function measuredOf(events: readonly TraceEvent[]): Measured {
  const pairs = new Map<string, number>();
  let total = 0;
  for (const { tid, args: { sentTo } } of events) {
    for (const [, to, bytes] of `${sentTo}`.matchAll(/(\d+):(\d+)/g)) {
      const pair = `${tid - 1} ${to}`;
      pairs.set(pair, (pairs.get(pair) ?? 0) + Number(bytes));
      total += Number(bytes);
    }
  }
  return { total, between: (from, to) => pairs.get(`${from} ${to}`) ?? 0 };
}
