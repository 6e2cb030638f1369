/** When the buffers of a plan are live. */

import type { Facts, ProgramFacts } from "./facts.ts";

/** First and last step of a buffer's life in a program, and the step that names it for messages. */
export interface Life {
  readonly name: string;
  first: number;
  last: number;
}

/**
 * When each scratch buffer lives in a program: from the first step that touches it to the last one. What a collective
 * counts in `receivedCounts` is read by the host after the program, so it lives to the end; other kinds live always.
 */
export function livesOf(
  { buffers }: Pick<Facts, "buffers">,
  { steps }: ProgramFacts,
): Map<string, Life> {
  const end = steps.length;
  const lives = new Map<string, Life>();
  for (const [name, { kind }] of buffers) {
    if (kind !== "scratch") lives.set(name, { name, first: -1, last: end });
  }
  for (const { step, index, reads, writes } of steps) {
    for (const name of [...reads, ...writes]) {
      const life = lives.get(name) ?? { name, first: index, last: index };
      if (life.last < index) life.last = index;
      lives.set(name, life);
    }
    if (step.op === "allToAll") {
      const life = lives.get(step.receivedCounts)!;
      life.last = end;
    }
  }
  return lives;
}
