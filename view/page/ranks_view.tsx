/** The second view: the contents of ranks. */

import type { VNode } from "preact";
import { useMemo } from "preact/hooks";
import { sizeText } from "../../spec/size_text.ts";
import {
  classOfRanks,
  heldText,
  housePicture,
  MEMORY_KINDS,
} from "../pictures/house.ts";
import { coordinatesText } from "../tracks.ts";
import type { Shown } from "./app.tsx";
import { Picture, View } from "./picture.tsx";

/** Shows the memory of each rank by kind, and its experts. */
export function RanksView({ view, rank }: Shown): VNode {
  const { plan, summary } = view;
  const figure = useMemo(() => housePicture(view), []);
  const sharded = Object.entries(plan.axes)
    .flatMap(([, { of, experts, table, over }]) =>
      experts && table && over ? [`${of}s over ${over.join(", ")}`] : []
    );
  const { ranks } = summary;
  const same = ranks.length === 1
    ? plan.ranks === 1 ? "" : " Every rank holds as much as the others."
    : ` There are ${ranks.length} kinds of ranks.`;
  return (
    <View
      id="ranks"
      question="What does each rank hold?"
      answer={`${
        sharded.length > 0
          ? `Sharded: ${[...new Set(sharded)].join("; ")}.`
          : "Every rank holds all experts."
      }${same}`}
    >
      <Picture figure={figure} />
      <ul class="legend">
        {MEMORY_KINDS.filter(({ kind }) =>
          ranks.some(({ bytes }) => bytes[kind] > 0)
        ).map(({ kind, name }) => (
          <li>
            <i class={`ink ${kind}`} />
            {name}
          </li>
        ))}
      </ul>
      <table>
        <caption>Ranks that hold the same, in numbers</caption>
        <thead>
          <tr>
            <th scope="col">ranks</th>
            <th scope="col">experts of a layer</th>
            {MEMORY_KINDS.map(({ kind }) => <th scope="col">{kind}</th>)}
            <th scope="col">total</th>
            {summary.target !== undefined && <th scope="col">headroom</th>}
          </tr>
        </thead>
        <tbody>
          {ranks.map(({ count, first, experts, bytes, headroom }) => (
            <tr>
              <th scope="row">{count} from {first}</th>
              <td>{experts.join(" or ")}</td>
              {MEMORY_KINDS.map(({ kind }) => <td>{sizeText(bytes[kind])}</td>)}
              <td>{sizeText(bytes.total)}</td>
              {headroom !== undefined && <td>{signedSize(headroom)}</td>}
            </tr>
          ))}
        </tbody>
      </table>
      {rank !== undefined && (
        <p class="chosen">
          Rank {rank} ({coordinatesText(plan, rank)}) holds{" "}
          {sizeText(classOfRanks(plan, ranks)[rank]!.bytes.total)}
          {heldText(plan, rank) !== "" &&
            `, experts ${heldText(plan, rank)}`}.
        </p>
      )}
    </View>
  );
}

function signedSize(bytes: number): string {
  return bytes < 0 ? `−${sizeText(-bytes)}` : sizeText(bytes);
}
