/** The data flow of one layer. */

import type { ComponentChildren, VNode } from "preact";
import { useEffect, useMemo, useState } from "preact/hooks";
import { flowOf, MAX_STEPS } from "../flow.ts";
import { flowPicture } from "../pictures/flow.ts";
import type { Figure } from "../pictures/figure.ts";
import { layerOfStep, rangeOf } from "../sections.ts";
import { trafficOf } from "../traffic.ts";
import type { Shown } from "./app.tsx";
import { Picture, View } from "./picture.tsx";

/** Shows which step produces each value and which steps read it. */
export function FlowView(
  { view, program, section, step, parts }: Shown & {
    readonly parts: ComponentChildren;
  },
): VNode {
  const { times, layers } = section;
  const [chosen, choose] = useState(0);
  const [weights, showWeights] = useState(true);
  const [tables, showTables] = useState(false);
  // Shows the layer of an opened step.
  const opened = step === undefined ? undefined : layerOfStep(section, step);
  useEffect(() => {
    if (opened !== undefined) choose(opened);
  }, [opened]);
  const k = Math.min(chosen, times - 1);
  const [from, end] = rangeOf(section, k);
  const title = times > 1 ? `layer ${layers[k]}` : section.name;
  const figure = useMemo(() => {
    const traffic = trafficOf(view, program, {
      start: from,
      length: end - from,
    });
    const flow = flowOf(view, program, {
      start: from,
      end,
      traffic,
      weights,
      tables,
    });
    return flowPicture(flow, { program, title, step });
  }, [program, from, end, weights, tables, step]);
  const hidden = end - from - MAX_STEPS;
  return (
    <View
      id="flow"
      question="How do values flow through a layer?"
      answer={`Boxes are the steps of ${title}; round boxes are values, with their axes and the mesh axes that these are sharded over. A collective states the bytes that leave a rank in a full step.${
        hidden > 0 ? ` The last ${hidden} steps are left out.` : ""
      }`}
    >
      {parts}
      <div class="filters" role="group" aria-label="What the graph shows">
        {times > 1 && (
          <label>
            layer{" "}
            <select
              value={k}
              onChange={({ currentTarget }) =>
                choose(Number(currentTarget.value))}
            >
              {layers.map((layer, i) => <option value={i}>{layer}</option>)}
            </select>
          </label>
        )}
        <label>
          <input
            type="checkbox"
            checked={weights}
            onChange={({ currentTarget }) => showWeights(currentTarget.checked)}
          />{" "}
          weights and states
        </label>
        <label>
          <input
            type="checkbox"
            checked={tables}
            onChange={({ currentTarget }) => showTables(currentTarget.checked)}
          />{" "}
          tables of integers
        </label>
      </div>
      <Picture figure={figure} middle={firstStep(figure)} />
    </View>
  );
}

/** Returns the center of the first step. */
function firstStep({ shapes }: Figure): number | undefined {
  const first = shapes.find(({ link }) => link !== undefined);
  return first?.kind === "rect" ? first.at[0] + first.size[0] / 2 : undefined;
}
