/** The eighth view: differences from another plan. */

import type { VNode } from "preact";
import type { PageDiff } from "../page_data.ts";
import { sideBySide } from "../side_by_side.ts";
import { sentPerToken } from "../traffic.ts";
import type { Shown } from "./app.tsx";
import { View } from "./picture.tsx";

/** Shows the figures of two plans in two columns, and the lines that only one of them has. */
export function DiffView(
  { view, against }: Shown & { readonly against: PageDiff },
): VNode {
  const rows = sideBySide(
    { summary: view.summary, sent: sentPerToken(view.plan) },
    against,
  );
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
