/** Rounds in which steps of a program are repeated. */

import { loopsOf } from "../../../spec/plan/rounds.ts";
import type { LaunchContext } from "./launches.ts";

/** Returns the number of rounds of a step by its index: those of the rank with the most rows. */
export function openRounds(
  { program, routings }: LaunchContext,
): (index: number) => number {
  const loops = loopsOf(program.steps);
  return (index) => {
    const loop = loops.find(({ first, last }) =>
      first < index && index <= last
    );
    const step = loop && program.steps[loop.first]!;
    const rows = step?.part && routings.get(step.part.routing);
    return step?.op === "rounds" && rows
      ? Math.max(1, Math.ceil(rows.max / step.rows))
      : 1;
  };
}
