/** The fourth view: what moves between ranks. */

import type { ComponentChildren, VNode } from "preact";
import { useMemo, useState } from "preact/hooks";
import { sizeText } from "../../spec/size_text.ts";
import { stepLink } from "../links.ts";
import { mainTraffic, trafficOf } from "../traffic.ts";
import { trafficPicture } from "../traffic_picture.ts";
import type { Shown } from "./app.tsx";
import { Picture, View } from "./picture.tsx";

/** The exchanges of a section, and one of them from rank to rank. */
export function TrafficView(
  { view, program, section, rank, parts }: Shown & {
    readonly parts: ComponentChildren;
  },
): VNode {
  const list = useMemo(() => trafficOf(view, program, section), [
    program,
    section,
  ]);
  const [chosen, choose] = useState<number>();
  const traffic = list.find(({ at }) => at.index === chosen) ??
    mainTraffic(list);
  const scene = useMemo(
    () => traffic && trafficPicture(view, { traffic, open: rank }),
    [traffic, rank],
  );
  const token = list.reduce((n, { perToken }) => n + (perToken ?? 0), 0);
  return (
    <View
      id="traffic"
      question="What moves between ranks?"
      answer={list.length === 0
        ? `Nothing, in ${section.name}.`
        : `In ${section.name}, a token sends ${
          sizeText(Math.round(token))
        } to other ranks, if experts are chosen evenly. The map shows a step of as many tokens as there is room for.`}
    >
      {parts}
      {list.length > 0 && (
        <table>
          <caption>Exchanges</caption>
          <thead>
            <tr>
              <th scope="col">step</th>
              <th scope="col" class="word">what</th>
              <th scope="col">over</th>
              <th scope="col">for a token, to others</th>
              <th scope="col">a full step, of a rank</th>
              <th scope="col">at most, to one rank</th>
            </tr>
          </thead>
          <tbody>
            {list.map((one) => (
              <tr>
                <td>
                  <a href={`#${stepLink(program, one.at.index)}`}>
                    {one.at.index}
                  </a>
                </td>
                <th scope="row" class="word">
                  <button
                    type="button"
                    aria-pressed={one === traffic}
                    onClick={() => choose(one.at.index)}
                  >
                    {one.name}
                  </button>
                </th>
                <td>{one.over.join(", ")}</td>
                <td>
                  {one.perToken === undefined
                    ? "–"
                    : sizeText(Math.round(one.perToken))}
                </td>
                <td>{sizeText(Math.round(one.perRank))}</td>
                <td>{sizeText(one.worstPair)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
      {scene && <Picture scene={scene} />}
    </View>
  );
}
