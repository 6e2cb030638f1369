/** The sixth view: time, of runs that were recorded and of steps that are predicted. */

import type { VNode } from "preact";
import { useMemo, useState } from "preact/hooks";
import type { PredictedTimeline } from "../../spec/plan_summary.ts";
import type { TraceEvent } from "../page_data.ts";
import { ROLE_NAMES } from "../roles.ts";
import {
  durationText,
  partOf,
  predictedRuns,
  runsOf,
  timeByRole,
  type TimedRun,
} from "../time.ts";
import { timePicture, type TimeWindow } from "../time_picture.ts";
import type { Shown } from "./app.tsx";
import { Picture, View } from "./picture.tsx";

/** Where the time of a run went, or is predicted to go. */
export function TimeView(
  { view, trace = [], predicted }: Shown & {
    readonly trace: readonly TraceEvent[] | undefined;
    readonly predicted: readonly PredictedTimeline[];
  },
): VNode {
  const recorded = useMemo(() => runsOf(trace, view.programs), [trace]);
  const runs = useMemo(
    () => [...recorded, ...predictedRuns(predicted, view.programs)],
    [recorded],
  );
  // Of runs that go on, the last.
  const [picked, choose] = useState<number>();
  const chosen = picked ?? Math.max(0, recorded.length - 1);
  const run = runs[chosen];
  const [window, zoom] = useState<TimeWindow>();
  const scene = useMemo(() => run && timePicture(run, window), [run, window]);
  if (!run || !scene) {
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
  const spent = timeByRole(run, view.plan.ranks);
  const busy = spent.reduce((sum, [, microseconds]) => sum + microseconds, 0);
  const seen = window ? partOf(run, window) : run;
  const seenSpent = timeByRole(seen, view.plan.ranks);
  const seenBusy = seenSpent.reduce((sum, [, time]) => sum + time, 0);
  const rows = [
    ...seenSpent.map(([role, microseconds]) =>
      [ROLE_NAMES[role], role, microseconds] as const
    ),
    [
      ...["waiting and the host", "waiting"] as const,
      Math.max(0, seen.microseconds - seenBusy),
    ] as const,
  ];
  const share = (microseconds: number, of: TimedRun) =>
    `${(100 * microseconds / Math.max(1, of.microseconds)).toFixed(0)} %`;
  const percent = (microseconds: number) => share(microseconds, run);
  return (
    <View
      id="time"
      question="Where does the time go?"
      answer={run.predicted
        ? `Predicted for ${view.summary.target}, where nothing was run: ${run.name} takes ${
          durationText(run.microseconds)
        }. The first rank is busy for ${percent(busy)} of it${
          spent[0] ? `, longest with ${ROLE_NAMES[spent[0][0]]}` : ""
        }. Ranks that do the same are one track; the empty track is waiting, and the host. The line below boxes is the critical path, on the ranks that the others wait for.`
        : `The recorded run took ${
          durationText(run.microseconds)
        }. A rank was busy for ${percent(busy)} of it${
          spent[0] ? `, longest with ${ROLE_NAMES[spent[0][0]]}` : ""
        }. A box is as wide as it took long, an exchange from when its rank comes to it; the empty track is waiting, and the host.`}
    >
      {runs.length > 1 && (
        <label class="layer">
          run{" "}
          <select
            value={chosen}
            onChange={({ currentTarget }) => {
              choose(Number(currentTarget.value));
              zoom(undefined);
            }}
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
      <Picture scene={scene} />
      <Zoom
        whole={run.microseconds}
        window={window ?? [0, run.microseconds]}
        zoom={zoom}
      />
      <table>
        <caption>
          {run.predicted
            ? "Predicted time of the first rank, by what it is for"
            : "Time of a mean rank, by what it was for"}
          {window &&
            `, from ${durationText(window[0])} to ${durationText(window[1])}`}
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
      </table>
    </View>
  );
}

/** How much of the part that is seen the next one shows, and how far it is moved. */
const IN = 0.4, ASIDE = 0.5;

/** Buttons that choose the part of a run that is drawn. */
function Zoom({ whole, window: [from, to], zoom }: {
  readonly whole: number;
  readonly window: TimeWindow;
  readonly zoom: (window: TimeWindow | undefined) => void;
}) {
  const show = (middle: number, width: number) => {
    const wide = Math.max(1, Math.min(whole, width));
    const start = Math.max(0, Math.min(whole - wide, middle - wide / 2));
    zoom(wide < whole ? [start, start + wide] : undefined);
  };
  const [middle, width] = [(from + to) / 2, to - from];
  const actions = [
    ["zoom in", () => show(middle, width * IN), false],
    ["zoom out", () => show(middle, width / IN), width >= whole],
    ["earlier", () => show(middle - width * ASIDE, width), from <= 0],
    ["later", () => show(middle + width * ASIDE, width), to >= whole],
  ] as const;
  return (
    <div class="parts" role="group" aria-label="Part of the run">
      {actions.map(([name, action, off]) => (
        <button type="button" onClick={action} aria-disabled={off}>
          {name}
        </button>
      ))}
    </div>
  );
}
