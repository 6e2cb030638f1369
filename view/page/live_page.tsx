/** The page of a live run. It follows the events of the process that serves it. */

import type { VNode } from "preact";
import { useEffect, useMemo, useState } from "preact/hooks";
import { sizeText } from "../../spec/size_text.ts";
import { rateText } from "../../spec/time_text.ts";
import { follow, LIVE_KINDS, type LiveState, NOTHING } from "../live.ts";
import { loadPicture } from "../pictures/load.ts";
import { lossPicture } from "../pictures/loss.ts";
import type { LiveData } from "../page_data.ts";
import { FactList } from "./fact_list.tsx";
import { Picture, View } from "./picture.tsx";

/** Shows a live run. */
export function LivePage({ data }: { readonly data: LiveData }): VNode {
  const [state, gone] = useEvents();
  const { progress, last, texts, ranks, ended } = state;
  const loading = progress && !last && texts.length === 0 &&
    ended === undefined;
  return (
    <>
      <header>
        <h1>{data.title}</h1>
      </header>
      <main>
        <p role="status" class="live">
          {ended ?? (gone
            ? "The process cannot be reached any more."
            : loading
            ? `Loading ${progress.stage}: ${
              Math.floor(100 * progress.done / Math.max(1, progress.total))
            } %`
            : "It runs.")}
        </p>
        {last && <TrainingView state={state} />}
        {texts.length > 0 && <TextView state={state} />}
        {ranks.length > 0 && <RankTable ranks={ranks} />}
      </main>
    </>
  );
}

/** Milliseconds between redraws, to leave processor time to the run. */
const REDRAW = 200;

/** Returns the state, updated a few times per second, and whether the connection is lost. */
function useEvents(): readonly [LiveState, boolean] {
  const [shown, show] = useState({ state: NOTHING, gone: false });
  useEffect(() => {
    let state = NOTHING;
    let gone = false;
    let timer: number | undefined;
    const draw = () => {
      timer ??= setTimeout(() => {
        timer = undefined;
        show({ state, gone });
      }, REDRAW);
    };
    const source = new EventSource("events");
    source.onerror = () => {
      gone = true;
      draw();
    };
    for (const kind of LIVE_KINDS) {
      source.addEventListener(kind, ({ data }) => {
        state = follow(state, kind, JSON.parse(data));
        gone = false;
        if (kind === "end") source.close();
        draw();
      });
    }
    return () => source.close();
  }, []);
  return [shown.state, shown.gone];
}

/** Pixels of pictures. */
const WIDTH = 1180, HEIGHT = 300;

function TrainingView({ state }: { readonly state: LiveState }): VNode {
  const { losses, validations } = state;
  const last = state.last!;
  const curve = useMemo(
    () => lossPicture({ losses, validations, name: "Loss" }, [WIDTH, HEIGHT]),
    [losses],
  );
  const load = useMemo(
    () =>
      last.expertLoad.length > 0
        ? loadPicture(last.expertLoad, WIDTH)
        : undefined,
    [last],
  );
  const facts = [
    [`${last.step}`, "step"],
    [last.loss.toFixed(4), "loss"],
    [last.gradientNorm.toFixed(3), "norm of the gradient"],
    [rateText(last.tokensPerSecond), "speed"],
    [sizeText(last.sentBytes), "sent between ranks in the step"],
    [sizeText(last.memoryBytes), "memory of the fullest rank"],
  ] as const;
  return (
    <>
      <FactList facts={facts} />
      <View id="loss" question="Does it learn?" answer="The loss of each step.">
        <Picture figure={curve} />
      </View>
      {load && (
        <View
          id="load"
          question="Are experts chosen evenly?"
          answer="A row is a layer, a box an expert: blue where fewer tokens chose it in the last steps than on average, orange where more did."
        >
          <Picture figure={load} />
        </View>
      )}
    </>
  );
}

function TextView({ state }: { readonly state: LiveState }): VNode {
  const { texts, tokens, ms } = state;
  return (
    <>
      <FactList
        facts={[
          [`${tokens}`, "new tokens"],
          [rateText(1000 * tokens / Math.max(1, ms)), "speed"],
        ]}
      />
      {texts.map((text) => <p class="text">{text}</p>)}
    </>
  );
}

function RankTable({ ranks }: Pick<LiveState, "ranks">): VNode {
  return (
    <table>
      <caption>Ranks</caption>
      <thead>
        <tr>
          {["rank", "memory", "sent in dispatch", "sent in combine"].map((
            head,
          ) => <th scope="col">{head}</th>)}
        </tr>
      </thead>
      <tbody>
        {ranks.map(({ rank, peakBytes, dispatchBytes, combineBytes }) => (
          <tr>
            <th scope="row">{rank}</th>
            {[peakBytes, dispatchBytes, combineBytes].map((bytes) => (
              <td>{sizeText(bytes)}</td>
            ))}
          </tr>
        ))}
      </tbody>
    </table>
  );
}
