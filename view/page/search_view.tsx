/** The ninth view: the configurations that a search tried. */

import type { VNode } from "preact";
import { useMemo } from "preact/hooks";
import { sizeText } from "../../spec/size_text.ts";
import { rateText, timeText } from "../../spec/time_text.ts";
import { isSame, searchPicture } from "../pictures/search.ts";
import {
  type FoundConfiguration,
  type SearchResult,
  strategyText,
} from "../search_result.ts";
import { Picture, View } from "./picture.tsx";

/** Shows the best one, the Pareto front, and why the others are worse. */
export function SearchView(
  { search }: { readonly search: SearchResult },
): VNode {
  const { found, pareto, thrownOut, phase, machine, objective } = search;
  const [best, ...others] = found as readonly [
    FoundConfiguration,
    ...FoundConfiguration[],
  ];
  const figure = useMemo(() => searchPicture(search), [search]);
  return (
    <View
      id="search-result"
      question={`Why ${best.name}?`}
      answer={`It is best in ${objective} for ${phase} on ${machine}, with sequences of ${search.context} positions and experts chosen ${
        search.experts === "even" ? "evenly" : `as ${search.experts}`
      }: ${rateText(best.tokensPerSecond)}, ${
        timeText(best.seconds)
      } a step; ${best.why}. Simulated, not measured, with ${search.numerics} numerics: ${search.assumes}.`}
    >
      <Picture figure={figure} />
      <ul class="legend">
        <li>
          <i class="ink experts" />{" "}
          on the Pareto front: nothing else is better in speed, time of a step
          and memory at once
        </li>
        <li>
          <i class="ink dense" /> slower, the best of each mesh
        </li>
        <li>a larger dot: more memory on the fullest rank</li>
      </ul>
      <table class="front">
        <caption>Pareto front</caption>
        <thead>
          <tr>
            <th scope="col">mesh</th>
            <th scope="col" class="word">dispatch</th>
            <th scope="col">sequences</th>
            <th scope="col">tokens of a step</th>
            <th scope="col">a step</th>
            <th scope="col">speed</th>
            <th scope="col">fullest rank</th>
            <th scope="col">of</th>
          </tr>
        </thead>
        <tbody>
          {pareto.map((one) => (
            <tr class={isSame(one, best) ? "changed" : ""}>
              <th scope="row">{one.name}</th>
              <td class="word">{strategyText(one) || "–"}</td>
              <td>{one.sequences}</td>
              <td>{one.tokens}</td>
              <td>{timeText(one.seconds)}</td>
              <td>{rateText(one.tokensPerSecond)}</td>
              <td>{sizeText(one.bytes)}</td>
              <td>{one.limit === undefined ? "?" : sizeText(one.limit)}</td>
            </tr>
          ))}
        </tbody>
      </table>
      <Losers
        title="The best of every other mesh, and why it is not the best"
        rows={others.map((one) => ({
          name: one.name,
          why: `${rateText(one.tokensPerSecond)}. ${sentence(one.why)}`,
        }))}
      />
      <Losers title="Thrown out" rows={thrownOut} />
    </View>
  );
}

function Losers({ title, rows }: {
  readonly title: string;
  readonly rows: readonly { readonly name: string; readonly why: string }[];
}): VNode | null {
  if (rows.length === 0) return null;
  return (
    <table class="losers">
      <caption>{title}</caption>
      <tbody>
        {rows.map(({ name, why }) => (
          <tr>
            <th scope="row">{name}</th>
            <td class="word">{why}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

function sentence(text: string): string {
  return `${text[0]?.toUpperCase() ?? ""}${text.slice(1)}`;
}
