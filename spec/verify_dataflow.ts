/** Rules of memory over time: when buffers are live, and that a step does not write what it uses under a second name. */

import type { Facts, ProgramFacts, Report, StepFacts } from "./verify_facts.ts";

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

/** Within a step, a buffer that is written is not bound a second time. */
export function checkAliasing(facts: Facts, report: Report): void {
  for (const { steps } of facts.programs) {
    for (const at of steps) {
      const twice = aliased(at);
      if (twice !== undefined) {
        report(
          `write buffer '${twice}'`,
          "the step uses it under a second name",
          at,
        );
      }
    }
  }
}

function aliased({ step, reads, writes }: StepFacts): string | undefined {
  const names = step.op === "launch"
    ? Object.values(step.bindings)
    : [...reads, ...writes];
  return writes.find((name) => names.indexOf(name) !== names.lastIndexOf(name));
}
