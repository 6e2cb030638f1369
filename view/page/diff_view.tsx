/** The eighth view: what another plan has otherwise. */

import type { VNode } from "preact";
import { sizeText } from "../../spec/size_text.ts";
import type { PlanSummary } from "../../spec/plan_summary.ts";
import type { PageDiff } from "../page_data.ts";
import type { Shown } from "./app.tsx";
import { View } from "./picture.tsx";

/** Numbers of two plans side by side, and the lines that only one of them has. */
export function DiffView(
  { view, against }: Shown & { readonly against: PageDiff },
): VNode {
  const rows = sideBySide(view.summary, against.summary);
  const same = against.text.startsWith("the plans are the same");
  return (
    <View
      id="diff"
      question={`What is different from ${against.name}?`}
      answer={same
        ? "Nothing."
        : "Numbers of steps and of allocations are not compared, only what they mean."}
    >
      <table>
        <caption>In numbers</caption>
        <thead>
          <tr>
            <th scope="col">what</th>
            <th scope="col">this plan</th>
            <th scope="col">{against.name}</th>
          </tr>
        </thead>
        <tbody>
          {rows.map(([what, mine, other]) => (
            <tr class={mine === other ? "" : "changed"}>
              <th scope="row">{what}</th>
              <td>{mine}</td>
              <td>{other}</td>
            </tr>
          ))}
        </tbody>
      </table>
      {!same && (
        <details>
          <summary>
            All {against.text.split("\n").filter((line) => /^[-+]/.test(line))
              .length} lines
          </summary>
          <pre tabIndex={0}><code>{against.text}</code></pre>
        </details>
      )}
    </View>
  );
}

function sideBySide(
  mine: PlanSummary,
  other: PlanSummary,
): (readonly [what: string, mine: string, other: string])[] {
  const most = (
    { ranks }: PlanSummary,
    kind: keyof PlanSummary["ranks"][0]["bytes"],
  ) => sizeText(Math.max(...ranks.map(({ bytes }) => bytes[kind])));
  const sent = ({ layers }: PlanSummary, name: string) =>
    sizeText(
      layers.reduce((n, { count, exchanges }) =>
        n + exchanges.filter((one) => one.name === name)
          .reduce((n, { bytesPerToken }) => n + count * bytesPerToken, 0), 0),
    );
  const mesh = ({ mesh }: PlanSummary) =>
    Object.entries(mesh).map(([axis, size]) => `${axis}=${size}`).join(", ");
  const of = (read: (summary: PlanSummary) => string) =>
    [read(mine), read(other)] as const;
  return [
    ["mesh", ...of(mesh)],
    ...(["weights", "state", "scratch", "staging", "total"] as const)
      .map((kind) =>
        [`${kind}, fullest rank`, ...of((s) => most(s, kind))] as const
      ),
    ...(["dispatch", "combine"] as const).map((name) =>
      [`${name} of a token to others`, ...of((s) => sent(s, name))] as const
    ),
    ["what does not fit", ...of((s) => `${s.problems.length}`)],
  ];
}
