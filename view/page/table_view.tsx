/** The steps of a program as a table, linked to the timeline. */

import type { VNode } from "preact";
import { useMemo, useState } from "preact/hooks";
import type { PhaseCosts } from "../../spec/plan_summary.ts";
import { sizeText } from "../../spec/size_text.ts";
import { stepLink } from "../links.ts";
import { type Role, ROLE_NAMES } from "../roles.ts";
import {
  costsOf,
  filterRows,
  scaledText,
  SI,
  sortRows,
  type StepKey,
  type StepRow,
  stepRows,
  sumRows,
} from "../step_table.ts";
import { durationText, phaseText } from "../time.ts";
import type { Shown } from "./app.tsx";
import { View } from "./picture.tsx";
import type { Timeline } from "./timeline_state.ts";

/** Number of initially visible rows. */
const FIRST = 40;

/** The columns, and whether their largest values are shown first. */
const COLUMNS: readonly {
  readonly key: StepKey;
  readonly name: string;
  readonly word?: boolean;
}[] = [
  { key: "index", name: "step", word: true },
  { key: "name", name: "name", word: true },
  { key: "layer", name: "layer" },
  { key: "kind", name: "kind", word: true },
  { key: "time", name: "time" },
  { key: "bytes", name: "bytes" },
  { key: "flops", name: "FLOPs" },
  { key: "share", name: "of roofline" },
];

/** Shows the cost of each step. */
export function TableView(
  { view, program, costs, timeline }: Shown & {
    readonly costs: readonly PhaseCosts[];
    readonly timeline: Timeline;
  },
): VNode {
  const { range, select } = timeline;
  const run = timeline.run?.program === program.program.name
    ? timeline.run
    : undefined;
  const [phase, choosePhase] = useState(0);
  const offered = useMemo(
    () => run ? costs : costs.slice(phase, phase + 1),
    [costs, phase, run],
  );
  const rows = useMemo(
    () => stepRows(view, program, { run, costs: offered }),
    [program, run, offered],
  );
  const [words, setWords] = useState("");
  const [kind, setKind] = useState<Role>();
  const [layer, setLayer] = useState<number>();
  const [sorted, sort] = useState<
    { readonly by: StepKey; readonly descending: boolean }
  >({ by: "index", descending: false });
  const [all, showAll] = useState(false);
  const found = useMemo(
    () =>
      sortRows(
        filterRows(rows, { words, kind, layer, range: run && range }),
        sorted,
      ),
    [rows, words, kind, layer, range, sorted],
  );
  const shown = all ? found : found.slice(0, FIRST);
  const sums = sumRows(found);
  const kinds = [...new Set(program.roles)];
  const layers = [...new Set(rows.flatMap((row) => row.layer ?? []))];
  const { costs: used, same } = costsOf(offered, run);
  return (
    <View
      id="table"
      question="What does each step cost?"
      answer={`${
        run
          ? `Times are ${
            run.predicted ? "predicted for the first rank" : "of a mean rank"
          }: ${run.name}. Select a range of the timeline to see its steps. `
          : ""
      }${
        used
          ? `Bytes and FLOPs are those of rank 0 in ${
            phaseText(used)
          }; an exchange counts what it sends to other ranks. ${
            same && used.steps.some(([, , , bound]) => bound !== undefined)
              ? "The roofline bound is the larger of bytes over bandwidth and FLOPs over peak FLOP/s."
              : ""
          }`
          : ""
      }`}
    >
      <div class="filters" role="group" aria-label="Filter of the steps">
        <label>
          filter{" "}
          <input
            type="search"
            id="filter"
            placeholder="dot, grouped_matmul, all-to-all …"
            value={words}
            onInput={({ currentTarget }) => setWords(currentTarget.value)}
          />
        </label>
        <label>
          kind{" "}
          <select
            value={kind ?? ""}
            onChange={({ currentTarget: { value } }) =>
              setKind(value === "" ? undefined : value as Role)}
          >
            <option value="">all</option>
            {kinds.map((role) => (
              <option value={role}>{ROLE_NAMES[role]}</option>
            ))}
          </select>
        </label>
        {layers.length > 1 && (
          <label>
            layer{" "}
            <select
              value={layer ?? ""}
              onChange={({ currentTarget: { value } }) =>
                setLayer(value === "" ? undefined : Number(value))}
            >
              <option value="">all</option>
              {layers.map((n) => <option value={n}>{n}</option>)}
            </select>
          </label>
        )}
        {!run && costs.length > 1 && (
          <label>
            step{" "}
            <select
              value={phase}
              onChange={({ currentTarget }) =>
                choosePhase(Number(currentTarget.value))}
            >
              {costs.map((of, i) => <option value={i}>{phaseText(of)}</option>)}
            </select>
          </label>
        )}
        {run && range && (
          <button
            type="button"
            onClick={() => select(undefined)}
          >
            Show steps outside of {rangeText(range)}
          </button>
        )}
      </div>
      <div
        class="scroll"
        tabIndex={0}
        role="region"
        aria-label="Table of the steps"
      >
        <table class="costs">
          <caption>
            {found.length.toLocaleString("en")} of{" "}
            {rows.length.toLocaleString("en")} steps
            {run && range && `, from ${rangeText(range)}`}
          </caption>
          <thead>
            <tr>
              {COLUMNS.map(({ key, name, word = false }) => {
                const on = sorted.by === key;
                return (
                  <th
                    scope="col"
                    class={word ? "word" : ""}
                    aria-sort={on
                      ? sorted.descending ? "descending" : "ascending"
                      : "none"}
                  >
                    <button
                      type="button"
                      onClick={() =>
                        sort({
                          by: key,
                          // Cost columns start with the largest value.
                          descending: on
                            ? !sorted.descending
                            : !word && key !== "layer",
                        })}
                    >
                      {name}
                      <span aria-hidden="true">
                        {on ? sorted.descending ? " ▾" : " ▴" : ""}
                      </span>
                    </button>
                  </th>
                );
              })}
            </tr>
          </thead>
          <tbody>
            {shown.map((row) => (
              <Row {...{ row, timeline }} link={stepLink(program, row.index)} />
            ))}
          </tbody>
          <tfoot>
            <tr>
              <th scope="row" colSpan={4}>sum</th>
              <td>{run ? durationText(sums.time) : "–"}</td>
              <td>{sizeText(sums.bytes)}</td>
              <td>{scaledText(sums.flops, SI)}</td>
              <td>{shareText(sums.share)}</td>
            </tr>
          </tfoot>
        </table>
      </div>
      {found.length > FIRST && (
        <button
          type="button"
          onClick={() => showAll(!all)}
        >
          {all
            ? `Show the first ${FIRST} only`
            : `Show all ${found.length.toLocaleString("en")}`}
        </button>
      )}
    </View>
  );
}

/** Number of steps shown before and after a selected step. */
const AROUND = 12;

function Row({ row, link, timeline }: {
  readonly row: StepRow;
  readonly link: string;
  readonly timeline: Timeline;
}) {
  const { index, name, how, layer, kind, time, span, bytes, flops, share } =
    row;
  const show = ([from, to]: readonly [number, number]) => {
    const around = AROUND * Math.max(1, to - from);
    timeline.zoom([from - around, to + around]);
    timeline.select([from, to]);
    document.getElementById("time")?.scrollIntoView({ block: "start" });
  };
  return (
    <tr>
      <td>
        <a href={`#${link}`}>{index}</a>
      </td>
      <th scope="row" class="word">
        {name} <span class="soft">{how}</span>
      </th>
      <td>{layer ?? "–"}</td>
      <td class="word">
        <i class={`ink ${kind}`} /> {kind === "dense" ? kind : ROLE_NAMES[kind]}
      </td>
      <td>
        {time === undefined || span === undefined ? "–" : (
          <button
            type="button"
            class="plain"
            aria-label={`${
              durationText(time)
            }: select step ${index} in the timeline`}
            onClick={() => show(span)}
          >
            {durationText(time)}
          </button>
        )}
      </td>
      <td>{bytes === undefined ? "–" : sizeText(bytes)}</td>
      <td>{flops === undefined ? "–" : scaledText(flops, SI)}</td>
      <td>{shareText(share)}</td>
    </tr>
  );
}

function rangeText([from, to]: readonly [number, number]): string {
  return `${durationText(from)} to ${durationText(to)}`;
}

function shareText(share: number | undefined): string {
  return share === undefined
    ? "–"
    : `${(100 * share).toFixed(share < 0.01 ? 1 : 0)} %`;
}
