/** What the lanes of a workgroup share out among themselves, and what they add up. */

import { type Hole, type KernelText, wgsl } from "../../../spec/kernel/text.ts";

/** Consecutive items for each lane, as many for one as for another: those from `from` below `to`. */
export function laneShare(items: Hole, lanes: number): KernelText {
  return wgsl`
    let share = (${items} + ${lanes - 1}) / ${lanes};
    let from = min(lane * share, ${items});
    let to = min(from + share, ${items});`;
}

/** `name` becomes the u32 sum of what the lanes below `end` have in `array`: an exclusive scan where that is `lane`. */
export function sumOfLanes(
  name: string,
  array: string,
  end: Hole,
): KernelText {
  return wgsl`
    var ${name} = 0u;
    for (var l = 0u; l < ${end}; l++) { ${name} += ${array}[l]; }`;
}
