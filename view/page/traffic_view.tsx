/** The fourth view: data exchanged between ranks. */

import type { ComponentChildren, VNode } from "preact";
import { useMemo, useState } from "preact/hooks";
import type { LinkClass } from "../../spec/machine.ts";
import { sizeText } from "../../spec/size_text.ts";
import { stepLink } from "../links.ts";
import type { HostPlacement } from "../page_data.ts";
import type { Recorded } from "../recorded.ts";
import { rangeOf } from "../sections.ts";
import {
  bytesByLink,
  mainTraffic,
  measuredTraffic,
  trafficOf,
} from "../traffic.ts";
import { trafficPicture } from "../pictures/traffic.ts";
import type { Shown } from "./app.tsx";
import { Picture, View } from "./picture.tsx";

/** Names of link classes. */
const LINKS: { readonly [L in LinkClass]: string } = {
  sameHost: "within a host",
  otherHost: "between hosts of a rack",
  otherRack: "between racks",
};

/** Shows the exchanges of a section, and the bytes between ranks for one of them. */
export function TrafficView(
  { view, program, section, rank, parts, recorded, placements }: Shown & {
    readonly parts: ComponentChildren;
    readonly recorded: Recorded | undefined;
    readonly placements: readonly HostPlacement[] | undefined;
  },
): VNode {
  const [layer, setLayer] = useState(0);
  const [chosenStep, choose] = useState<number>();
  const [planned, setPlanned] = useState(false);
  const k = Math.min(layer, section.times - 1);
  const [start, end] = rangeOf(section, k);
  const list = useMemo(
    () => trafficOf(view, program, { start, length: end - start }),
    [program, start, end],
  );
  const measured = useMemo(
    () => recorded && measuredTraffic(view, list, recorded),
    [list, recorded],
  );
  const chosen = list.findIndex(({ at }) => at.index - start === chosenStep);
  const index = chosen < 0 ? list.indexOf(mainTraffic(list)!) : chosen;
  const shown = !planned && measured?.[index];
  const traffic = list[index];
  const figure = useMemo(
    () => traffic && trafficPicture(view, { traffic, shown, open: rank }),
    [traffic, shown, rank],
  );
  const links = useMemo(
    () => traffic && placements && bytesByLink(shown || traffic, placements),
    [traffic, shown, placements],
  );
  const token = list.reduce((n, { perToken }) => n + (perToken ?? 0), 0);
  const what = section.times > 1 ? `each of ${section.name}` : section.name;
  return (
    <View
      id="traffic"
      question="What moves between ranks?"
      answer={list.length === 0
        ? `Nothing, in ${section.name}.`
        : `In ${what}, a token sends ${
          sizeText(Math.round(token))
        } to other ranks, if experts are chosen evenly. ${
          shown
            ? "The map shows what the recorded run sent."
            : "The map shows a step with the maximum number of tokens."
        }${
          view.plan.ranks > 16
            ? " A box adds up what the ranks of one bundle send those of another."
            : ""
        }`}
    >
      {parts}
      {list.length > 0 && (
        <table>
          <caption>
            Exchanges{measured && section.times > 1 && (
              <>
                {" of "}
                <label>
                  layer{" "}
                  <select
                    value={k}
                    onChange={({ currentTarget }) =>
                      setLayer(Number(currentTarget.value))}
                  >
                    {section.layers.map((layer, i) => (
                      <option value={i}>{layer}</option>
                    ))}
                  </select>
                </label>
              </>
            )}
          </caption>
          <thead>
            <tr>
              <th scope="col">step</th>
              <th scope="col" class="word">what</th>
              <th scope="col">over</th>
              <th scope="col">for a token, to others</th>
              <th scope="col">a full step, of a rank</th>
              <th scope="col">at most, to one rank</th>
              {measured && (
                <>
                  <th scope="col">recorded, of all ranks</th>
                  <th scope="col">expected of its tokens</th>
                </>
              )}
            </tr>
          </thead>
          <tbody>
            {list.map((one, i) => (
              <tr>
                <td>
                  <a href={`#${stepLink(program, one.at.index)}`}>
                    {one.at.index}
                  </a>
                </td>
                <th scope="row" class="word">
                  <button
                    type="button"
                    aria-pressed={i === index}
                    onClick={() => choose(one.at.index - start)}
                  >
                    {one.name}
                  </button>
                </th>
                <td>{one.over.join(", ")}</td>
                <td>{bytesText(one.perToken)}</td>
                <td>{bytesText(one.perRank)}</td>
                <td>{bytesText(one.worstPair)}</td>
                {measured && (
                  <>
                    <td>{bytesText(measured[i]?.total)}</td>
                    <td>{bytesText(measured[i]?.expected)}</td>
                  </>
                )}
              </tr>
            ))}
          </tbody>
        </table>
      )}
      {measured?.[index] && (
        <div class="parts" role="group" aria-label="What the map shows">
          <button
            type="button"
            aria-pressed={!planned}
            onClick={() =>
              setPlanned(false)}
          >
            recorded
          </button>
          <button
            type="button"
            aria-pressed={planned}
            onClick={() =>
              setPlanned(true)}
          >
            planned
          </button>
        </div>
      )}
      {figure && <Picture figure={figure} />}
      {links && links.length > 0 && (
        <table class="links">
          <caption>
            {traffic!.name} on {view.summary.target}, all ranks together
          </caption>
          <tbody>
            {links.map(([link, bytes]) => (
              <tr>
                <th scope="row" class="word">{LINKS[link]}</th>
                <td>{bytesText(bytes)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
    </View>
  );
}

function bytesText(bytes: number | undefined): string {
  return bytes === undefined ? "–" : sizeText(Math.round(bytes));
}
