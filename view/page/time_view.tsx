/** The sixth view: the time of recorded runs and predicted steps. */

import type { VNode } from "preact";
import { useMemo, useState } from "preact/hooks";
import {
  type Bottleneck,
  type PredictedStep,
} from "../../spec/plan_summary.ts";
import { pipelineText } from "../../spec/text/plan.ts";
import { timeText } from "../../spec/time_text.ts";
import { PAUSE_NAMES } from "../pauses.ts";
import { ROLE_NAMES } from "../roles.ts";
import {
  durationText,
  layerTimes,
  partOf,
  timeByReason,
  timeByRole,
  type TimedRun,
} from "../time.ts";
import {
  rangeOnPicture,
  timeAt,
  timePicture,
  type TimeWindow,
} from "../pictures/time.ts";
import type { Shown } from "./app.tsx";
import { Picture, View } from "./picture.tsx";
import type { Timeline } from "./timeline_state.ts";

/** Shows the time of a run by kind of work, measured or predicted. */
export function TimeView(
  { view, timeline }: Shown & { readonly timeline: Timeline },
): VNode {
  const { runs, chosen, run, window, range, zoom, select } = timeline;
  const [dragged, drag] = useState<TimeWindow>();
  const figure = useMemo(() => run && timePicture(run, window), [run, window]);
  if (!run || !figure) {
    return (
      <View
        id="time"
        question="Where does the time go?"
        answer="The trace holds no run."
      >
        {null}
      </View>
    );
  }
  const { ranks } = view.plan;
  const pipeline = pipelineText(view.plan);
  const spent = timeByRole(run, ranks);
  const busy = sumOf(spent);
  const drawn = window ?? [0, run.microseconds] as const;
  const summed = range ?? window;
  const show = actionsOf(run, drawn, zoom);
  const marked = dragged ?? range;
  const [left, right] = marked && rangeOnPicture(marked, drawn) || [];
  return (
    <View
      id="time"
      question="Where does the time go?"
      answer={`${
        run.predicted
          ? `Predicted for ${view.summary.target}, where nothing was run: ${run.name} takes ${
            durationText(run.microseconds)
          }. The first rank is busy for ${share(busy, run)} of it${
            longest(spent)
          }.${
            pipeline === undefined ? "" : ` The schedule is ${pipeline}.`
          } Equal ranks are one track. The line below boxes is the critical path: what the end of the step waits for.`
          : `The recorded run took ${
            durationText(run.microseconds)
          }. A rank was busy for ${share(busy, run)} of it${longest(spent)}.`
      } Thin boxes are waits; the empty track is the host. Drag over the timeline, or click a box, to add up a range.`}
    >
      {runs.length > 1 && (
        <label class="layer">
          run{" "}
          <select
            value={chosen}
            onChange={({ currentTarget }) =>
              timeline.choose(Number(currentTarget.value))}
          >
            {runs.map(({ name, microseconds, predicted }, i) => (
              <option value={i}>
                {predicted ? "predicted" : i + 1}: {name},{" "}
                {durationText(microseconds)}
              </option>
            ))}
          </select>
        </label>
      )}
      <Picture
        figure={figure}
        overlay={left !== undefined && (
          <div
            class="range"
            style={{
              left: `${100 * left}%`,
              width: `${100 * (right! - left)}%`,
            }}
          />
        )}
        onDrag={([from, to], done) => {
          const time: TimeWindow = [timeAt(from, drawn), timeAt(to, drawn)];
          drag(done ? undefined : time);
          if (done) select(time);
        }}
        onPick={(note, { shiftKey }) =>
          select(
            note?.time && range && shiftKey
              ? [
                Math.min(range[0], note.time[0]),
                Math.max(range[1], note.time[1]),
              ]
              : note?.time,
          )}
        onKey={({ key, shiftKey, ctrlKey, metaKey, altKey }) => {
          if (ctrlKey || metaKey || altKey) return false;
          const action = KEYS[`${shiftKey ? "Shift " : ""}${key}`] ?? KEYS[key];
          if (action === undefined) return false;
          show[action]();
          return true;
        }}
        onWheel={({ ctrlKey, deltaY }, x) => {
          // Without Ctrl, the wheel scrolls the page.
          if (!ctrlKey) return false;
          const at = timeAt(x, drawn);
          const by = deltaY < 0 ? IN : 1 / IN;
          zoom([at - (at - drawn[0]) * by, at + (drawn[1] - at) * by]);
          return true;
        }}
      />
      <Buttons {...{ timeline, show }} drawn={drawn} run={run} />
      <div class="beside">
        <Sums {...{ run, ranks, summed }} />
        {run.phase && !summed && view.summary.predicted?.[run.phase] && (
          <Parts step={view.summary.predicted[run.phase]!} />
        )}
      </div>
    </View>
  );
}

function sumOf(rows: readonly (readonly [unknown, number])[]): number {
  return rows.reduce((sum, [, time]) => sum + time, 0);
}

function share(microseconds: number, of: TimedRun): string {
  return `${(100 * microseconds / Math.max(1, of.microseconds)).toFixed(0)} %`;
}

function longest([first]: ReturnType<typeof timeByRole>): string {
  return first ? `, longest with ${ROLE_NAMES[first[0]]}` : "";
}

/** Shows sums of time by role and by reason of waiting, for a run or a range of it. */
function Sums({ run, ranks, summed }: {
  readonly run: TimedRun;
  readonly ranks: number;
  readonly summed: TimeWindow | undefined;
}) {
  const seen = summed ? partOf(run, summed) : run;
  const roles = timeByRole(seen, ranks);
  const reasons = timeByReason(seen, ranks);
  const host = seen.microseconds - sumOf(roles) - sumOf(reasons);
  const rows = [
    ...roles.map(([role, time]) => [ROLE_NAMES[role], role, time] as const),
    ...reasons.map(([reason, time]) =>
      [PAUSE_NAMES[reason], "waiting", time] as const
    ),
    ["the host", "host", Math.max(0, host)] as const,
  ];
  return (
    <table class="sums">
      <caption>
        {run.predicted
          ? "Predicted time of the first rank by role"
          : "Time by role, mean over ranks"}
        {summed &&
          `, from ${durationText(summed[0])} to ${durationText(summed[1])}`}
      </caption>
      <tbody>
        {rows.map(([name, ink, microseconds]) => (
          <tr>
            <th scope="row">
              <i class={`ink ${ink}`} /> {name}
            </th>
            <td>{durationText(microseconds)}</td>
            <td>{share(microseconds, seen)}</td>
          </tr>
        ))}
      </tbody>
      {summed && (
        <tfoot>
          <tr>
            <th scope="row">all</th>
            <td>{durationText(seen.microseconds)}</td>
            <td>{share(seen.microseconds, run)} of the run</td>
          </tr>
        </tfoot>
      )}
    </table>
  );
}

/** Names of the limits of a device. */
const BOUNDS: { readonly [B in Bottleneck]: string } = {
  launch: "kernel launches",
  arithmetic: "arithmetic",
  memory: "memory bandwidth",
  disk: "reading experts from disk",
  exchange: "exchanges",
  waiting: "waiting for ranks that are later",
  run: "the host: inputs, outputs and synchronization",
};

/** Shows a predicted step by limiting resource. */
function Parts({ step: { parts, seconds } }: { readonly step: PredictedStep }) {
  const rows = (Object.keys(BOUNDS) as Bottleneck[])
    .filter((name) => parts[name] > 0)
    .sort((a, b) => parts[b] - parts[a]);
  return (
    <table class="bounds">
      <caption>Predicted time, by what bounds it</caption>
      <tbody>
        {rows.map((name) => (
          <tr>
            <th scope="row">{BOUNDS[name]}</th>
            <td>{timeText(parts[name]).replace(" us", " µs")}</td>
            <td>{(100 * parts[name] / seconds).toFixed(0)} %</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

/** Zoom factor of one step, and fraction of the visible part that one step moves. */
const IN = 0.4, ASIDE = 0.5;

type Actions = ReturnType<typeof actionsOf>;

/** Returns the actions that change the visible part of a run. */
function actionsOf(
  { microseconds }: TimedRun,
  [from, to]: TimeWindow,
  zoom: Timeline["zoom"],
) {
  const show = (middle: number, width: number) => {
    const wide = Math.min(microseconds, width);
    // Moves within the run.
    const start = Math.max(
      0,
      Math.min(microseconds - wide, middle - wide / 2),
    );
    zoom([start, start + wide]);
  };
  const [middle, width] = [(from + to) / 2, to - from];
  return {
    in: () => show(middle, width * IN),
    out: () => show(middle, width / IN),
    earlier: () => show(middle - width * ASIDE, width),
    later: () => show(middle + width * ASIDE, width),
    all: () => zoom(undefined),
  };
}

/** Keys of the timeline. */
const KEYS: { readonly [key: string]: keyof Actions } = {
  "+": "in",
  "=": "in",
  "-": "out",
  "0": "all",
  "Shift ArrowLeft": "earlier",
  "Shift ArrowRight": "later",
};

/** Buttons for the visible part of a run and for the selected range. */
function Buttons({ timeline, show, drawn: [from, to], run }: {
  readonly timeline: Timeline;
  readonly show: Actions;
  readonly drawn: TimeWindow;
  readonly run: TimedRun;
}) {
  const { range, zoom, select } = timeline;
  const duration = run.microseconds;
  const layers = useMemo(() => layerTimes(run), [run]);
  const all = to - from >= duration;
  const actions = [
    ["zoom in", show.in, false],
    ["zoom out", show.out, all],
    ["earlier", show.earlier, from <= 0],
    ["later", show.later, to >= duration],
    ["all of it", show.all, all],
  ] as const;
  return (
    <div class="parts" role="group" aria-label="Part of the run">
      {actions.map(([name, action, off]) => (
        <button type="button" onClick={action} aria-disabled={off}>
          {name}
        </button>
      ))}
      {layers.length > 1 && (
        <label>
          select layer{" "}
          <select
            id="time-layer"
            value={layers.find(([, time]) =>
              range && time[0] === range[0] && time[1] === range[1]
            )?.[0] ?? ""}
            onChange={({ currentTarget: { value } }) =>
              select(layers.find(([layer]) => `${layer}` === value)?.[1])}
          >
            <option value="">–</option>
            {layers.map(([layer]) => <option value={layer}>{layer}</option>)}
          </select>
        </label>
      )}
      {range && (
        <>
          <button type="button" onClick={() => zoom(range)}>
            zoom to the selection
          </button>
          <button type="button" onClick={() => select(undefined)}>
            clear the selection
          </button>
        </>
      )}
      <span class="note">
        Keys: <kbd>+</kbd> <kbd>-</kbd> <kbd>0</kbd> zoom, <kbd>Shift</kbd>{" "}
        <kbd>←</kbd> <kbd>→</kbd> pan, <kbd>Enter</kbd> select a box,{" "}
        <kbd>Shift</kbd> <kbd>Enter</kbd> extend the selection, <kbd>Ctrl</kbd>
        {" "}
        wheel zoom.
      </span>
    </div>
  );
}
