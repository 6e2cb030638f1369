/** The seventh view: a token's way through a recorded run. */

import type { VNode } from "preact";
import { useMemo, useState } from "preact/hooks";
import type { LayerChoices } from "../page_data.ts";
import { ranksWith, tokenPicture } from "../token_picture.ts";
import type { Shown } from "./app.tsx";
import { Picture, View } from "./picture.tsx";

/** The experts that a token chose, layer by layer, and how often all were chosen. */
export function TokenView(
  { view, choices }: Shown & { readonly choices: readonly LayerChoices[] },
): VNode {
  const count = choices[0]?.chosen.length ?? 0;
  const [token, choose] = useState(0);
  const scene = useMemo(() => tokenPicture(view, { choices, token }), [token]);
  return (
    <View
      id="token"
      question="Which way did a token go?"
      answer={`The recorded run had ${count} ${
        count === 1 ? "token" : "tokens"
      }. The stronger the color of a box, the more tokens chose that expert; the marks are those of token ${token}.`}
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
      <Picture scene={scene} />
      <table>
        <caption>Token {token}, layer by layer</caption>
        <thead>
          <tr>
            <th scope="col">layer</th>
            <th scope="col">experts</th>
            <th scope="col">ranks</th>
          </tr>
        </thead>
        <tbody>
          {choices.map(({ layer, chosen }) => (
            <tr>
              <th scope="row">{layer}</th>
              <td>{chosen[token]!.join(" ")}</td>
              <td>
                {chosen[token]!.map((expert) =>
                  ranksWith(view, expert).join("/") || "each"
                ).join(" ")}
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </View>
  );
}
