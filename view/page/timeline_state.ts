/** The state of the timeline, which views share: the run, its visible part, and the selected range. */

import { useMemo, useState } from "preact/hooks";
import type { PredictedTimeline } from "../../spec/plan_summary.ts";
import type { TraceEvent } from "../page_data.ts";
import type { PlanView } from "../plan_view.ts";
import { predictedRuns, runsOf, type TimedRun } from "../time.ts";
import type { TimeWindow } from "../pictures/time.ts";

/** State of the timeline. */
export interface Timeline {
  readonly runs: readonly TimedRun[];
  /** Index of the shown run. */
  readonly chosen: number;
  readonly run: TimedRun | undefined;
  /** The visible part. Default: all. */
  readonly window: TimeWindow | undefined;
  /** The selected range. */
  readonly range: TimeWindow | undefined;
  choose(run: number): void;
  /** Shows a part of the run, or all of it. */
  zoom(window: TimeWindow | undefined): void;
  select(range: TimeWindow | undefined): void;
}

const NO_EVENTS: readonly TraceEvent[] = [];

/** Creates the state of the timeline. It starts with the last recorded run or the first predicted one. */
export function useTimeline(
  view: PlanView,
  { trace = NO_EVENTS, predicted }: {
    readonly trace: readonly TraceEvent[] | undefined;
    readonly predicted: readonly PredictedTimeline[];
  },
): Timeline {
  const recorded = useMemo(() => runsOf(trace, view.programs), [trace]);
  const runs = useMemo(
    () => [...recorded, ...predictedRuns(predicted, view.programs)],
    [recorded],
  );
  const [picked, pick] = useState<number>();
  const [window, zoom] = useState<TimeWindow>();
  const [range, select] = useState<TimeWindow>();
  const chosen = picked ?? Math.max(0, recorded.length - 1);
  const run = runs[chosen];
  return {
    runs,
    chosen,
    run,
    window,
    range,
    choose: (run) => {
      pick(run);
      zoom(undefined);
      select(undefined);
    },
    zoom: (window) => zoom(run && window && inside(run.microseconds, window)),
    select,
  };
}

/** Limits a part to the run, with a minimum length of one microsecond. Undefined for the complete run. */
function inside(
  duration: number,
  [from, to]: TimeWindow,
): TimeWindow | undefined {
  const width = Math.max(1, Math.min(duration, to - from));
  const middle = (from + to) / 2;
  const start = Math.max(0, Math.min(duration - width, middle - width / 2));
  return width < duration ? [start, start + width] : undefined;
}
