/** Tokens and exchanges of recorded runs: the rank of each token, and the bytes between ranks. */

import { traceName } from "../spec/text/parts.ts";
import type { Program, Step } from "../spec/plan/plan.ts";
import type { TraceEvent } from "./page_data.ts";

/** The bytes that a step sent, over all recorded runs. */
export interface Measured {
  /** Bytes from all ranks. */
  readonly total: number;
  readonly between: (from: number, to: number) => number;
}

/** All runs of a program in a trace. */
export interface Recorded {
  /** Returns the rank of each item of an axis, for all runs in order. Empty if the trace does not contain it. */
  sourceRanks(axis: string): readonly number[];
  /** Returns the bytes that a step sent. Undefined if no step of that name was recorded at its position. */
  sent(step: Step, index: number): Measured | undefined;
}

/**
 * Returns the runs of a program if the trace belongs to the same model on the same mesh. Steps are found by name: on
 * another device launches may be merged differently, and positions differ.
 */
export function recordedOf(
  trace: readonly TraceEvent[],
  { name: program, steps }: Program,
): Recorded {
  const all = trace.filter(({ ph }) => ph === "X");
  const complete = all.filter(({ tid }) => tid === 0);
  // Each process has the same runs.
  const runs = complete.filter(({ pid, name }) =>
    pid === complete[0]!.pid && name === program
  );
  // The clocks of processes differ, so runs are distinguished by time only when necessary.
  const alone = complete.every(({ name }) => name === program);
  const during = all.filter(({ tid, ts }) =>
    tid > 0 &&
    (alone ||
      runs.some(({ ts: start, dur = 0 }) => ts >= start && ts <= start + dur))
  );
  // Name -> position in the recorded plan -> bytes sent there.
  const exchanges = new Map<string, Map<number, TraceEvent[]>>();
  for (const event of during) {
    const { step, sentTo } = event.args;
    if (sentTo === undefined) continue;
    const byStep = exchanges.get(event.name) ?? new Map<number, TraceEvent[]>();
    exchanges.set(event.name, byStep);
    const events = byStep.get(Number(step)) ?? [];
    byStep.set(Number(step), events);
    events.push(event);
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
      const byStep = exchanges.get(name);
      const before =
        steps.slice(0, index).filter((other) => traceName(other) === name)
          .length;
      const found = [...byStep?.keys() ?? []].sort((a, b) => a - b)[before];
      return found === undefined ? undefined : measuredOf(byStep!.get(found)!);
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
