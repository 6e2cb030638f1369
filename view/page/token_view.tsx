/** The seventh view: the path of a token through a recorded run. */

import type { VNode } from "preact";
import { useMemo, useState } from "preact/hooks";
import type { LayerChoices, TraceEvent } from "../page_data.ts";
import { tokenPicture } from "../pictures/token.ts";
import { hopsOf, sourceRanksOf, weightText } from "../token_way.ts";
import type { Shown } from "./app.tsx";
import { Picture, View } from "./picture.tsx";

/** Shows the rank of a token, its experts per layer, and how often each expert was chosen. */
export function TokenView(
  { view, choices, trace }: Shown & {
    readonly choices: readonly LayerChoices[];
    readonly trace: readonly TraceEvent[] | undefined;
  },
): VNode {
  const count = choices[0]?.chosen.length ?? 0;
  const [token, choose] = useState(0);
  const sourceRanks = useMemo(
    () => sourceRanksOf(view.plan, choices, trace),
    [],
  );
  const sourceRank = sourceRanks?.[token];
  const figure = useMemo(
    () => tokenPicture(view, { choices, token, sourceRank }),
    [token],
  );
  const weighted = choices.every(({ weights }) => weights !== undefined);
  return (
    <View
      id="token"
      question="Which way did a token go?"
      answer={`The recorded run had ${count} ${
        count === 1 ? "token" : "tokens"
      }. The stronger the color of a box, the more tokens chose that expert; the marks are those of token ${token}${
        weighted ? ", with what each expert counts for" : ""
      }.${
        sourceRank === undefined
          ? ""
          : ` In each layer it goes from rank ${sourceRank} to the ranks of its experts, and back.`
      }`}
    >
      <label class="layer">
        token{" "}
        <input
          type="number"
          min={0}
          max={count - 1}
          value={token}
          onInput={({ currentTarget: { value } }) =>
            choose(Math.max(0, Math.min(count - 1, Number(value) || 0)))}
        />
      </label>
      <Picture figure={figure} />
      <table>
        <caption>Token {token}, layer by layer</caption>
        <thead>
          <tr>
            <th scope="col">layer</th>
            {sourceRank !== undefined && <th scope="col">from rank</th>}
            <th scope="col">experts</th>
            <th scope="col">on ranks</th>
            {weighted && <th scope="col">weights</th>}
          </tr>
        </thead>
        <tbody>
          {choices.map((of) => {
            const hops = hopsOf(view, of, { token, sourceRank });
            return (
              <tr>
                <th scope="row">{of.layer}</th>
                {sourceRank !== undefined && <td>{sourceRank}</td>}
                <td>{hops.map(({ expert }) => expert).join(" ")}</td>
                <td>
                  {hops.map(({ ranks }) => ranks.join("/") || "each").join(" ")}
                </td>
                {weighted && (
                  <td>
                    {hops.map(({ weight }) => weightText(weight!)).join(" ")}
                  </td>
                )}
              </tr>
            );
          })}
        </tbody>
      </table>
    </View>
  );
}
