/** The fifth view: memory by step. */

import type { ComponentChildren, VNode } from "preact";
import { useMemo } from "preact/hooks";
import { sizeText } from "../../spec/size_text.ts";
import { stepLink } from "../links.ts";
import { liveBuffers, peakOf } from "../memory.ts";
import { memoryPicture } from "../pictures/memory.ts";
import { describeStep } from "../step_detail.ts";
import type { Shown } from "./app.tsx";
import { Picture, View } from "./picture.tsx";

/** Number of named buffers of a peak. */
const NAMED = 6;

/** Shows the scratch buffers in memory, and the buffers of the peak. */
export function MemoryView(
  { view, program, section, rank, parts }: Shown & {
    readonly parts: ComponentChildren;
  },
): VNode {
  const figure = useMemo(
    () => memoryPicture(view, { program, section, rank: rank ?? 0 }),
    [program, section, rank],
  );
  const peak = useMemo(
    () => peakOf(program, liveBuffers(view, program, rank ?? 0)),
    [program, rank],
  );
  const at = program.steps[peak.step];
  return (
    <View
      id="memory"
      question="What needs memory, and when?"
      answer={
        <>
          A box is a buffer of rank{" "}
          {rank ?? 0}: as wide as it is needed, as high as it is large. Boxes
          that are needed at different times share memory.
        </>
      }
    >
      {parts}
      <Picture figure={figure} />
      {at && (
        <p>
          Peak at{" "}
          <a href={`#${stepLink(program, at.index)}`}>
            step {at.index}, {describeStep(view, at).name}
          </a>: {sizeText(peak.bytes)}, of which {peak.of.slice(0, NAMED).map(
            ({ buffer, bytes }) => `${buffer.name} ${sizeText(bytes)}`,
          ).join(", ")}
          {peak.of.length > NAMED && ` and ${peak.of.length - NAMED} smaller`}.
        </p>
      )}
    </View>
  );
}
