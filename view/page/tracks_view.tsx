/** The first view: the tracks. */

import type { ComponentChildren, VNode } from "preact";
import { useMemo } from "preact/hooks";
import { trackPicture } from "../pictures/track.ts";
import { stationsOf } from "../stations.ts";
import type { Shown } from "./app.tsx";
import { Picture, View } from "./picture.tsx";

/** Shows the work of a layer, and the steps where ranks wait for each other. */
export function TracksView(
  { view, program, section, rank, parts }: Shown & {
    readonly parts: ComponentChildren;
  },
): VNode {
  const figure = useMemo(
    () => trackPicture(view, { program, section, open: rank }),
    [program, section, rank],
  );
  // With deduplicated rows, indices have a separate exchange.
  const exchanges = stationsOf(program, section)
    .filter(({ kind, title, role }) => kind === "switch" && title === role)
    .length;
  const { name, times } = section;
  const often = times > 1 ? ` It runs ${times} times.` : "";
  const bundles = view.plan.ranks > 16
    ? " A track is a bundle of ranks; click its name to open it."
    : "";
  return (
    <View
      id="tracks"
      question={section.layers.length > 0
        ? "What happens in a layer?"
        : "What happens, and where do ranks wait for each other?"}
      answer={`Ranks are tracks, with work on them. ${
        exchanges === 0
          ? `In ${name}, no token changes tracks.`
          : `In ${name}, tokens change tracks ${
            exchanges === 2 ? "twice" : `${exchanges} times`
          }: to the ranks of their experts, and back.`
      }${often}${bundles}`}
    >
      {parts}
      <Picture figure={figure} />
    </View>
  );
}
