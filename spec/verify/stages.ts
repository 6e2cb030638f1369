/** Rules of stages: a step uses only buffers that its ranks have, and ranks use the values that are sent to them. */

import { onRank } from "../plan/plan.ts";
import type { Facts, Report } from "../plan/facts.ts";

/**
 * Checks that the ranks of a step have the buffers that it reads and writes, that ranks read each sent value, and that
 * some rank has each output.
 */
export function checkStages(facts: Facts, report: Report): void {
  const lacks = (name: string, classes: readonly number[]) =>
    classes.map((c) => facts.everyRank[c]!).find((rank) =>
      onRank(facts.buffers.get(name)!.bytes, rank) === 0
    );
  for (const { program, steps } of facts.programs) {
    const reads = new Map<string, Set<number>>();
    for (const at of steps) {
      for (const name of at.reads) {
        const classes = reads.get(name) ?? new Set();
        reads.set(name, classes);
        for (const c of at.readers) classes.add(c);
      }
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
    const outputs = Object.values(program.outputs);
    for (const at of steps) {
      const { step } = at;
      if (step.op !== "send") continue;
      if (outputs.some(({ buffer }) => buffer === step.to)) continue;
      const unread = at.writers.find((c) => !reads.get(step.to)?.has(c));
      if (unread === undefined) continue;
      report(
        `send '${step.from}'`,
        `rank ${facts.everyRank[unread]} does not read '${step.to}'`,
        at,
      );
    }
    for (const [name, { buffer }] of Object.entries(program.outputs)) {
      const everywhere = [...facts.classes.keys()];
      if (everywhere.some((c) => lacks(buffer, [c]) === undefined)) continue;
      report(`return output '${name}'`, `no rank has buffer '${buffer}'`);
    }
  }
}
