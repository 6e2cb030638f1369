/** Rule of stages: a step uses only buffers that its ranks have, and every rank with a port has its buffer. */

import { onRank } from "../plan/plan.ts";
import type { Facts, Report } from "../plan/facts.ts";

/** Checks that the ranks of a step have the buffers that it reads and writes, and that some rank has each output. */
export function checkStages(facts: Facts, report: Report): void {
  const lacks = (name: string, classes: readonly number[]) =>
    classes.map((c) => facts.everyRank[c]!).find((rank) =>
      onRank(facts.buffers.get(name)!.bytes, rank) === 0
    );
  for (const { program, steps } of facts.programs) {
    for (const at of steps) {
      for (
        const [op, names, classes] of [
          ["read", at.reads, at.readers],
          ["write", at.writes, at.writers],
        ] as const
      ) {
        for (const name of new Set(names)) {
          // The source of a send knows the rows without their buffer.
          if (at.step.op === "send" && at.step.rows?.counts === name) continue;
          const rank = lacks(name, classes);
          if (rank === undefined) continue;
          report(`${op} buffer '${name}'`, `rank ${rank} does not have it`, at);
        }
      }
    }
    for (const [name, { buffer }] of Object.entries(program.outputs)) {
      const everywhere = [...facts.classes.keys()];
      if (everywhere.some((c) => lacks(buffer, [c]) === undefined)) continue;
      report(`return output '${name}'`, `no rank has buffer '${buffer}'`);
    }
  }
}
