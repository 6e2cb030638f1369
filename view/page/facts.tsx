/** The facts of a plan on one line. */

import type { VNode } from "preact";
import { sizeText } from "../../spec/size_text.ts";
import type { PlanView } from "../plan_view.ts";
import { scaledText } from "../step_table.ts";
import { meshText } from "../tracks.ts";
import { type Fact, FactList } from "./fact_list.tsx";

/** Suffixes of parameter counts. */
const COUNTS = ["", " k", " M", " B", " T"];

/** Shows the main facts: the size of the model, its mesh, the memory of the fullest rank, and whether it fits. */
export function Facts({ view }: { readonly view: PlanView }): VNode {
  const { plan, summary, programs } = view;
  const { model, ranks, problems, notes, target } = summary;
  const max = Math.max(...ranks.map(({ bytes }) => bytes.total));
  const steps = programs.reduce((n, { steps }) => n + steps.length, 0);
  const facts: Fact[] = [
    [scaledText(model.parameters, COUNTS), "parameters"],
    ...model.activeParameters === undefined ? [] : [
      [
        scaledText(model.activeParameters, COUNTS),
        "active for a token",
      ] as const,
    ],
    [
      `${plan.ranks}`,
      `${plan.ranks === 1 ? "rank" : "ranks"} (${meshText(summary)})`,
    ],
    [sizeText(max), "on the fullest rank"],
    [steps.toLocaleString("en"), "steps"],
    [`${Object.keys(plan.kernels).length}`, "kernels"],
  ];
  return (
    <section aria-label="Facts">
      <FactList facts={facts} />
      {target !== undefined && problems.length === 0 && (
        <p class="good">It fits {target}.</p>
      )}
      {problems.length > 0 && (
        <div class="problems">
          <h2>What does not fit{target === undefined ? "" : ` ${target}`}</h2>
          <ul>
            {problems.map(({ what, fix }) => (
              <li>
                {what}. <span class="soft">Fix: {fix}</span>
              </li>
            ))}
          </ul>
        </div>
      )}
      {notes.map((note) => <p class="note">{note}</p>)}
    </section>
  );
}
