/** The sixth view: a recorded run over time. */

import type { VNode } from "preact";
import { useMemo, useState } from "preact/hooks";
import type { TraceEvent } from "../page_data.ts";
import { durationText, runsOf, timeByRole } from "../time.ts";
import { timePicture } from "../time_picture.ts";
import type { Shown } from "./app.tsx";
import { Picture, View } from "./picture.tsx";

/** Where the time of a recorded run went. */
export function TimeView(
  { view, trace }: Shown & { readonly trace: readonly TraceEvent[] },
): VNode {
  const runs = useMemo(() => runsOf(trace, view.programs), []);
  const [chosen, choose] = useState(runs.length - 1);
  const run = runs[chosen];
  const scene = useMemo(() => run && timePicture(run), [run]);
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
  return (
    <View
      id="time"
      question="Where does the time go?"
      answer={`The recorded run took ${
        durationText(run.microseconds)
      }, most of it for ${
        spent[0]?.[0]
      }. A box is as wide as it took long; the empty track is waiting, and the host.`}
    >
      {runs.length > 1 && (
        <label class="layer">
          run{" "}
          <select
            value={chosen}
            onChange={({ currentTarget }) =>
              choose(Number(currentTarget.value))}
          >
            {runs.map(({ name, microseconds }, i) => (
              <option value={i}>
                {i + 1}: {name}, {durationText(microseconds)}
              </option>
            ))}
          </select>
        </label>
      )}
      <Picture scene={scene} />
      <table>
        <caption>Time of a mean rank, by what it was for</caption>
        <tbody>
          {spent.map(([role, microseconds]) => (
            <tr>
              <th scope="row">
                <i class={`ink ${role}`} /> {role}
              </th>
              <td>{durationText(microseconds)}</td>
              <td>{(100 * microseconds / run.microseconds).toFixed(0)} %</td>
            </tr>
          ))}
        </tbody>
      </table>
    </View>
  );
}
