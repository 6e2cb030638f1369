/** Live ranges of buffers. */

import type { Facts, ProgramFacts } from "./facts.ts";
import { liveInLoops, loopsOf } from "./rounds.ts";

/** First and last step of a buffer's live range in a program, and the step that names it for messages. */
export interface Life {
  readonly name: string;
  first: number;
  last: number;
}

/**
 * The live range of each scratch buffer in a program: from the first step that uses it to the last one. The host reads
 * `receivedCounts` of a collective after the program, so it is live until the end; other kinds are always live. Steps
 * that are repeated in rounds extend live ranges (`liveInLoops`).
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
  const loops = loopsOf(steps.map(({ step }) => step));
  for (const life of lives.values()) {
    Object.assign(life, liveInLoops(life, loops));
  }
  return lives;
}
